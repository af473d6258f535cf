"""Known answers: the constructed model finds one sentence anywhere, and only through the right block."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLTextConfig
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLForCausalLM

from longsight.model import Model, load_model
from longsight.model.constructed import config, tensors, token_codes, write_constructed
from longsight.model.needle import NeedlePrompt, hide_needle
from longsight.model.tokenizer import Tokenizer
from longsight.ops import Batch

BLOCK = 128


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_constructed(tmp_path_factory.mktemp("constructed"))


@pytest.fixture(scope="session", params=[torch.bfloat16, torch.float32], ids=str)
def model(request: pytest.FixtureRequest, checkpoint: Path) -> Model:
    return load_model(checkpoint, dtype=request.param)


def haystack(size: int) -> str:
    """Real text: sources of torch, in a fixed order, repeated if need be."""
    parts: list[str] = []
    for path in sorted(Path(torch.__file__).parent.rglob("*.py")):
        parts.append(path.read_text(encoding="utf-8", errors="ignore"))
        if sum(map(len, parts)) >= size:
            break
    return "".join(parts)


def answers(
    model: Model, prompts: Sequence[str], tokens: int, *, chunk: int = 2048, forbid: int | None = None
) -> tuple[list[str], list[Tensor]]:
    """Greedy answers of several prompts of one length, run as one batch, and layer 1's ids at the first answer token.

    forbid: a block that layer 1 may not use (its id is replaced by the one before it, or dropped).
    """
    length = len(prompts[0])
    blocks = -(-(length + tokens) // BLOCK)
    cache = model.allocate_cache(blocks * len(prompts))
    order = torch.randperm(blocks * len(prompts), generator=torch.Generator().manual_seed(1)).tolist()
    pages = [order[i * blocks : (i + 1) * blocks] for i in range(len(prompts))]
    rows = [torch.tensor(list(prompt.encode())) for prompt in prompts]
    chosen: list[Tensor] = []

    def on_select(layer: int, ids: Tensor) -> Tensor | None:
        if layer == 1:
            chosen.append(ids.clone())
            if forbid is not None:
                return without(ids, forbid)
        return None

    logits = torch.empty(0)
    step = max(chunk // len(prompts), 1)
    for start in range(0, length, step):
        end = min(start + step, length)
        batch = Batch.build([(end - start, end, p) for p in pages])
        last = end == length
        wanted = [(i + 1) * (end - start) - 1 for i in range(len(prompts))] if last else []
        logits = model.forward(
            torch.cat([row[start:end] for row in rows]),
            batch,
            cache,
            logit_rows=torch.tensor(wanted, dtype=torch.long),
            on_select=on_select if last else None,
        )
    out: list[list[int]] = [[] for _ in prompts]
    for i in range(tokens):
        best = logits.argmax(-1)
        for answer, token in zip(out, best.tolist(), strict=True):
            answer.append(token)
        if i + 1 < tokens:
            batch = Batch.build([(1, length + i + 1, p) for p in pages])
            logits = model.forward(best, batch, cache, on_select=on_select)
    per_prompt = chosen[0].unflatten(0, (len(prompts), -1))[:, -1]
    return [bytes(t for t in a if t < 256).decode(errors="replace") for a in out], list(per_prompt)


def without(ids: Tensor, block: int) -> Tensor:
    """The same selection with one block taken out of every list."""
    big = torch.iinfo(torch.int32).max
    kept = torch.where((ids < 0) | (ids == block), torch.full_like(ids, big), ids).sort(-1).values
    return torch.where(kept == big, torch.full_like(kept, -1), kept)


def assert_found(model: Model, prompts: Sequence[NeedlePrompt]) -> None:
    texts, ids = answers(model, [p.text for p in prompts], len(prompts[0].answer))
    for prompt, text, chosen in zip(prompts, texts, ids, strict=True):
        assert text == prompt.answer, prompt.needle
        # The token that follows the match is the answer's first; its block must have been chosen.
        wanted = (prompt.needle[0] + len(prompt.question)) // BLOCK
        assert wanted in chosen.flatten().tolist()
        assert len(prompt.text) > 16 * BLOCK


def test_needles_at_every_depth(model: Model) -> None:
    text = haystack(8192)
    prompts = [hide_needle(text, 4096, depth / 11, seed=depth, distractors=3) for depth in range(12)]
    assert_found(model, prompts)


def test_needles_at_every_position_within_a_block(model: Model) -> None:
    text = haystack(8192)
    seen: set[int] = set()
    for offsets in torch.arange(BLOCK).chunk(4):
        # A little more than 16 blocks, the needle in block 2 or 3: it is read only if it is chosen.
        size = 2400
        prompts = [hide_needle(text, size, 0, seed=o, offset=2 * BLOCK + o) for o in offsets.tolist()]
        seen |= {p.needle[0] % BLOCK for p in prompts}
        assert_found(model, prompts)
    assert len(seen) == BLOCK


def test_the_answer_is_lost_with_its_block(model: Model) -> None:
    prompt = hide_needle(haystack(8192), 4096, 0.4, seed=3)
    first = prompt.needle[0] + len(prompt.question)
    assert answers(model, [prompt.text], 1)[0] == [prompt.answer[0]]
    assert answers(model, [prompt.text], 1, forbid=first // BLOCK)[0] != [prompt.answer[0]]


def test_64k(model: Model) -> None:
    prompt = hide_needle(haystack(1 << 16), 1 << 16, 0.35, seed=9, distractors=3)
    assert_found(model, [prompt])


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("depth", [0.0, 0.37, 0.9])
def test_a_million_tokens(checkpoint: Path, depth: float) -> None:
    prompt = hide_needle(haystack(1 << 20), 1 << 20, depth, seed=5, distractors=3)
    assert_found(load_model(checkpoint), [prompt])


def test_transformers_answers_alike(model: Model) -> None:
    """The published names and the formula's arithmetic, checked by transformers' own text model in fp32."""
    prompt = hide_needle(haystack(8192), 2500, 0.3, seed=4)
    ids = torch.tensor(list(prompt.text.encode()))
    theirs = transformers_model()(ids[None], use_cache=False).logits[0, -1]
    assert chr(int(theirs.argmax())) == prompt.answer[0]
    assert answers(model, [prompt.text], 1)[0] == [prompt.answer[0]]


@torch.no_grad()
def transformers_model() -> torch.nn.Module:
    text = config()["text_config"]
    assert isinstance(text, dict)
    built: torch.nn.Module = MiniMaxM3VLForCausalLM(MiniMaxM3VLTextConfig(**text)).eval()
    state: dict[str, Tensor] = {}
    weights = {name.removeprefix("language_model."): w.bfloat16().float() for name, w in tensors().items()}
    for name, weight in weights.items():
        if name.endswith("gate_proj.weight"):
            up = weights[name.replace("gate_proj", "up_proj")]
            state[name.replace("gate_proj", "gate_up_proj")] = torch.cat((weight, up))
        elif not name.endswith("up_proj.weight"):
            state[name.replace("self_attn.index_", "self_attn.indexer.")] = weight
    built.load_state_dict(state)
    return built


def test_the_files_are_the_same_every_time_and_small(checkpoint: Path, tmp_path: Path) -> None:
    again = write_constructed(tmp_path / "again")
    names = sorted(p.name for p in checkpoint.iterdir())
    assert names == sorted(p.name for p in again.iterdir())
    for name in names:
        digests = {hashlib.sha256((d / name).read_bytes()).hexdigest() for d in (checkpoint, again)}
        assert len(digests) == 1, name
    assert sum(p.stat().st_size for p in checkpoint.iterdir()) < 20e6


def test_codes_are_nearly_orthogonal() -> None:
    codes = token_codes()
    assert bool((codes.abs() == 1).all())
    assert bool((codes[:, 0] == 1).all())
    correlation = codes @ codes.T / 128 - torch.eye(len(codes))
    assert float(correlation.abs().max()) == 0.125


def test_tokens_are_bytes(checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_dir(checkpoint)
    text = "naïve €5 \x00\n🙂"
    assert list(tokenizer.encode(text)) == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert list(tokenizer.encode("a<|end|>é")) == [97, 257, 0xC3, 0xA9]  # through the library
    assert tokenizer.vocab_size == 272
