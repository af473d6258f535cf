"""Tiny checkpoints of the transformers library, written in milliseconds: a byte-level tokenizer and random models."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.llama import LlamaConfig, LlamaForCausalLM
from transformers.models.mistral import MistralConfig, MistralForCausalLM
from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen3 import Qwen3Config, Qwen3ForCausalLM


def write_byte_tokenizer(directory: Path) -> None:
    """One token per byte, then padding (256) and end of text (257)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.save_pretrained(directory)


SIZES: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e8},
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 256,
}
CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (partial(MistralConfig, sliding_window=None), MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def dense_model(kind: str, seed: int = 0, **more: Any) -> Any:
    """A random model whose attention is peaked: there is something for an index branch to find."""
    config_class, model_class = CLASSES[kind]
    torch.manual_seed(seed)
    model = model_class._from_config(config_class(**{**SIZES, **more}), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed_tokens" in name:
                p.normal_()
            elif p.ndim == 2:
                p.normal_(std=1.2 * p.shape[1] ** -0.5)
                if name.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight")):
                    p.mul_(2)
                if name.endswith("self_attn.q_proj.weight"):  # the heads of a group look for much the same
                    groups = p.view(SIZES["num_key_value_heads"], -1, SIZES["head_dim"], p.shape[1])
                    groups.copy_(groups.mean(1, keepdim=True) * 1.2 + 0.3 * groups)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                p.fill_(2.0)
    return model


def write_dense_checkpoint(directory: Path, kind: str, **more: Any) -> Path:
    dense_model(kind, **more).save_pretrained(directory)
    write_byte_tokenizer(directory)
    return directory
