"""A checkpoint written by formula, not trained: it continues a text with what followed the best earlier match.

Two layers of exact MiniMax-M3 arithmetic. Token ids are bytes.

- Layer 0 has one head per distance 1..16. Rotation alone makes head i attend to the token i places back, so each token
  collects a *signature* of the 16 tokens before it (and, as a query, of itself and the 15 before), nearer tokens
  weighing more.
- Layer 1 compares signatures without rotation. Its index branch finds the block whose token had the most similar past,
  its main branch attends to that token with a very peaked softmax, copies its code, and the output matrix reads it as
  the next token.

The answer is right only if the index branch picks the right block among all, which makes the model a measuring
instrument. What it is not: it knows nothing, and where no earlier text matches it is confidently wrong. Equal matches
are averaged. In bf16 a difference in the 16th token back alone is lost in rounding, so 15 tokens count. MLPs are there
and all zero, so it says nothing about their arithmetic.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers

from longsight.model.constructed_weights import GROUP, HEAD_DIM, HIDDEN, MLP_WIDTH, ROTARY, THETA, VOCAB, tensors
from longsight.model.errors import CheckpointError
from longsight.model.tokenizer import byte_characters

VERSION = 2  # raise it when the written bytes change: a cached checkpoint of another version is not used
# config.json last: where it exists, so do the others.
FILES = ("model.safetensors", "tokenizer.json", "generation_config.json", "chat_template.jinja", "config.json")
BOS, EOS = 256, 257
# MiniMax-M3's own spelling of a document's start and a turn's end, and its style for the ids that nothing uses.
SPECIAL_TOKENS = ("]~!b[", "[e~[", *(f"]<]reserved {i}[>[" for i in range(VOCAB - EOS - 1)))
# Room for an answer after a prompt of 2^20 tokens.
MAX_POSITIONS = (1 << 20) + 8192


def constructed_path() -> Path:
    """The checkpoint in the user's cache directory, written when it is missing (a fraction of a second).

    Raises CheckpointError if the directory cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = cache / "longsight" / f"constructed-v{VERSION}"
    if all((target / name).exists() for name in FILES):
        return target
    try:
        target.mkdir(parents=True, exist_ok=True)
        # Written beside and moved file by file: no other process sees half a file, and two writers agree on the bytes.
        with tempfile.TemporaryDirectory(dir=target.parent) as staging:
            written = write_constructed(staging)
            for name in FILES:
                (written / name).replace(target / name)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the constructed model to {target}: {error}; XDG_CACHE_HOME names another place"
        ) from error
    return target


def write_constructed(directory: str | Path, *, dtype: torch.dtype = torch.bfloat16, kv_heads: int = 1) -> Path:
    """Write the whole checkpoint into `directory`, the same bytes every time; returns the directory.

    kv_heads: key/value heads (and index heads), each with 16 query heads; 4 is MiniMax-M3's own head count.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to(dtype).contiguous() for name, tensor in tensors(kv_heads).items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "tokenizer.json").write_text(_tokenizer().to_str(), encoding="utf-8")
    _write_json(path / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS})
    # The model continues the text it is given, so a conversation is simply its contents in order.
    (path / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    _write_json(path / "config.json", config(dtype, kv_heads))
    return path


def config(dtype: torch.dtype = torch.bfloat16, kv_heads: int = 1) -> dict[str, object]:
    """config.json in the published form."""
    text = {
        "architectures": ["MiniMaxM3SparseForCausalLM"],
        "model_type": "minimax_m3_vl_text",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": GROUP * kv_heads,
        "num_key_value_heads": kv_heads,
        "head_dim": HEAD_DIM,
        "intermediate_size": MLP_WIDTH,
        "dense_intermediate_size": MLP_WIDTH,
        "shared_intermediate_size": MLP_WIDTH,
        "n_shared_experts": 1,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "routed_scaling_factor": 2.0,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "hidden_act": "swigluoai",
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "rms_norm_eps": 1e-6,
        "use_gemma_norm": True,
        "use_qk_norm": True,
        "qk_norm_type": "per_head",
        "attention_output_gate": False,
        "rope_theta": THETA,
        "rotary_dim": ROTARY,
        "partial_rotary_factor": ROTARY / HEAD_DIM,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "moe_layer_freq": [0, 0],
        "torch_dtype": str(dtype).removeprefix("torch."),
        "sparse_attention_config": {
            "use_sparse_attention": True,
            "sparse_attention_freq": [1, 1],
            "sparse_disable_index_value": [1, 1],
            "sparse_num_index_heads": kv_heads,
            "sparse_index_dim": HEAD_DIM,
            "sparse_block_size": 128,
            "sparse_topk_blocks": 16,
            "sparse_local_block": 1,
            "sparse_init_block": 0,
            "sparse_score_type": "max",
        },
    }
    return {
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
        "model_type": "minimax_m3_vl",
        "torch_dtype": text["torch_dtype"],
        "text_config": text,
    }


def _tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE without merges, its ids the byte values."""
    vocab = {character: byte for byte, character in byte_characters().items()}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS]
    )
    return tokenizer


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
