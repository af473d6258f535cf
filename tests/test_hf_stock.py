"""What importing `longsight.hf` does to stock models that did not ask for it: nothing they can notice.

The comparison needs a process that has not imported it yet, so it runs in one of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent

# Everything observable about stock models, as one dictionary that is printed where it differs.
SCRIPT = """
import inspect, logging, sys, warnings

sys.path.insert(0, sys.argv[1])
import torch, transformers
from transformers import DynamicCache
from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as m3
from transformers.utils import logging as hf_logging

import oracle, tiny_hf

logged = []
handler = logging.Handler()
handler.emit = lambda record: logged.append((record.levelname, record.getMessage()))
hf_logging.get_logger("transformers").addHandler(handler)

tokens = torch.randint(3, 255, (1, 90), generator=torch.Generator().manual_seed(0))
mask = torch.ones_like(tokens)


def told(call):
    "What a call returns or raises, warns of and logs."
    logged.clear()
    hf_logging.warning_once.cache_clear()  # so that what is said once is said each time here
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        try:
            result = call()
        except Exception as error:
            result = repr(error)
    return result, [(str(w.message), w.category.__name__) for w in caught], list(logged)


def attention_calls(model, old_name):
    "One layer's attention as callers may write it: names, places, a cache under each of its names, a wrong call."
    attention = model.model.layers[1].self_attn
    hidden = torch.randn(1, 40, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    places = torch.arange(40)[None]
    tables = model.model.rotary_emb(hidden, places)
    fresh = lambda: DynamicCache(config=model.config)
    yield lambda: attention(hidden, tables, None)[0].tolist()
    yield lambda: attention(hidden, tables, None, fresh())[0].tolist()
    yield lambda: attention(hidden, position_embeddings=tables, attention_mask=None, position_ids=places)[0].tolist()
    yield lambda: attention(hidden, tables, None, **{oracle.CACHE: fresh()})[0].tolist()
    yield lambda: attention(hidden, tables, None, past_key_values=fresh())[0].tolist()
    yield lambda: attention(hidden, tables)
    yield lambda: attention(hidden, tables, None, None, None)


def everything():
    found = {"signature": inspect.signature(m3.MiniMaxM3VLAttention.forward)}
    found["name"] = m3.MiniMaxM3VLAttention.forward.__qualname__
    models = {kind: oracle.build(oracle.text_config()) for kind in ("eager", "sdpa")}
    models["vision"] = oracle.build_vision(oracle.text_config())
    models |= {kind: tiny_hf.dense_model(kind) for kind in tiny_hf.CLASSES}
    models["sdpa"].set_attn_implementation("sdpa")
    for kind, model in models.items():
        options = dict(attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
        found[kind, "forward"] = told(lambda: model(tokens).logits.tolist())
        found[kind, "generate"] = told(lambda: model.generate(tokens, **options).tolist())
        found[kind, "old name"] = told(
            lambda: model.generate(tokens, past_key_values=DynamicCache(config=model.config), **options).tolist()
        )
        found[kind, "no such implementation"] = told(lambda: model.set_attn_implementation("nonsense"))
    for i, call in enumerate(attention_calls(models["eager"], "past_key_values")):
        found["attention", i] = told(call)
    return found


before = everything()
import longsight.hf
after = everything()
different = [key for key in before if before[key] != after[key]]
for key in different:
    print(key, *(f"\\n  {str(found[key])[-600:]}" for found in (before, after)))
if not isinstance(before["eager", "generate"][0], list) or not isinstance(before["attention", 5][0], str):
    sys.exit("the comparison compares nothing: " + str(before["eager", "generate"])[-600:])
sys.exit(bool(different))
"""


def test_importing_changes_nothing_about_stock_models() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(TESTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
