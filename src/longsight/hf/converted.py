"""Models of the transformers library with an index branch, as model types of their own.

A type of its own is what keeps such a checkpoint from being loaded as the dense model it came from, without its index
branch and without a word. Importing `longsight.hf` makes the types known to AutoModelForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama import LlamaConfig, LlamaForCausalLM
from transformers.models.mistral import MistralConfig, MistralForCausalLM
from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen3 import Qwen3Config, Qwen3ForCausalLM

from longsight.hf.attention import NAME
from longsight.hf.branch import SparseAttention
from longsight.model.config_json import CONVERTED_PREFIX
from longsight.ops import LongsightError, PageLayout, UnsupportedError

INDEX_KEYS = ("index_head_dim", "index_rotary_dim", "index_block_size", "index_topk_blocks", "index_local_blocks")


class ConversionError(LongsightError, ValueError):
    """A model, text or setting that cannot be converted; the message names it and what is accepted."""


class ModelPathError(ConversionError, OSError):
    """A path where no model is; an OSError too, which is what transformers raises for one."""


@dataclass(frozen=True)
class Family:
    """One model type with an index branch: what it is made from, and its classes."""

    model_type: str
    source: type[Any]
    config: type[Any]
    model: type[Any]


class WithIndexBranch:
    """Mixed into a causal language model: every attention gets an index branch and runs sparse, always."""

    config: Any
    model: Any

    def __init__(self, config: Any) -> None:
        check(config)
        super().__init__(config)  # type: ignore[call-arg]
        for layer in self.model.layers:
            layer.self_attn = SparseAttention(layer.self_attn, config)

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, *_args: Any, **_kwargs: Any
    ) -> str:
        if attn_implementation not in (None, NAME):
            raise UnsupportedError(
                f"attn_implementation {attn_implementation!r}: a converted model runs {NAME!r} only; for dense "
                "attention load the model it was made from"
            )
        return NAME

    def index_parameters(self) -> dict[str, Tensor]:
        """The index branches' parameters by name."""
        return {name: p for name, p in self.named_parameters() if ".indexer." in name}  # type: ignore[attr-defined]


def _family(source: Any, model: Any) -> Family:
    kind: str = source.model_type
    name = source.__name__.removesuffix("Config")
    config: Any = type(
        f"Sparse{name}Config", (source,), {"model_type": CONVERTED_PREFIX + kind, "__module__": __name__}
    )
    sparse: Any = type(
        f"Sparse{name}ForCausalLM", (WithIndexBranch, model), {"config_class": config, "__module__": __name__}
    )
    AutoConfig.register(config.model_type, config)
    AutoModelForCausalLM.register(config, sparse)
    return Family(kind, source, config, sparse)


FAMILIES = {
    family.model_type: family
    for family in (
        _family(LlamaConfig, LlamaForCausalLM),
        _family(MistralConfig, MistralForCausalLM),
        _family(Qwen2Config, Qwen2ForCausalLM),
        _family(Qwen3Config, Qwen3ForCausalLM),
    )
}


def check(config: Any) -> None:
    """Raise ConversionError unless every layer can have an index branch of the sizes that `config` says."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None) is not None:
        window = getattr(config, "sliding_window", None)
        raise ConversionError(
            f"layers of {', '.join(sorted(kinds))} with a sliding window of {window}: only models whose layers all "
            "have full attention can be converted"
        )
    missing = [key for key in INDEX_KEYS if not isinstance(getattr(config, key, None), int)]
    if missing:
        raise ConversionError(
            f"the configuration lacks {', '.join(missing)}: it is of no model that longsight converted"
        )
    dim = head_dim(config)
    try:
        PageLayout(config.index_block_size, config.num_key_value_heads, dim, config.index_head_dim, torch.float32)
    except UnsupportedError as error:
        raise ConversionError(str(error)) from None
    rotary = config.index_rotary_dim
    if rotary % 2 or not 0 <= rotary < config.index_head_dim or rotary > dim:
        raise ConversionError(
            f"index_rotary_dim {rotary} must be even, below index_head_dim {config.index_head_dim} so that channels "
            f"without position remain, and at most head_dim {dim}"
        )
    if not 1 <= config.index_local_blocks <= config.index_topk_blocks:
        raise ConversionError(
            f"index_topk_blocks {config.index_topk_blocks} must hold the {config.index_local_blocks} local blocks "
            "(at least 1)"
        )


def head_dim(config: Any) -> int:
    """Channels of a main head."""
    dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return dim


def require_directory(path: str | Path) -> Path:
    """The directory of a model. Raises ModelPathError for what transformers would look for on a hub."""
    directory = Path(path)
    if not directory.is_dir():
        found = "is a file" if directory.exists() else "does not exist"
        raise ModelPathError(
            f"{path} {found}; expected a directory with config.json, *.safetensors and tokenizer.json. A model on the "
            "Hugging Face hub has to be downloaded first (hf download ORG/NAME --local-dir DIR)"
        )
    if not (directory / "config.json").is_file():
        raise ModelPathError(f"{path} has no config.json; expected a directory that transformers can load")
    return directory


def read_config(path: str | Path) -> Any:
    """The configuration of the model in a directory. Raises ConversionError where transformers cannot read one."""
    directory = require_directory(path)
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True)
    except (ValueError, OSError) as error:  # a type that it does not know, or no JSON
        raise ConversionError(f"{path}: {str(error).splitlines()[0]}") from None


def load(path: str | Path, dtype: torch.dtype | str = "auto", **kwargs: Any) -> Any:
    """A converted model from its directory, ready to generate. Raises ConversionError if it is none, or incomplete.

    kwargs go to transformers' from_pretrained (device_map and the like).
    """
    config = read_config(path)
    family = next((f for f in FAMILIES.values() if isinstance(config, f.config)), None)
    if family is None:
        kinds = ", ".join(f.config.model_type for f in FAMILIES.values())
        raise ConversionError(f"{path} is a {config.model_type} model; a converted one is {kinds}")
    return from_pretrained(family, path, config, dtype, **kwargs)


def from_pretrained(
    family: Family, path: str | Path, config: Any, dtype: torch.dtype | str, *, new_branch: bool = False, **kwargs: Any
) -> Any:
    """A model from its files. new_branch: they are those of the dense model, its index branches start at random.

    Raises ConversionError if any other tensor is missing or of another shape.
    """
    model, found = family.model.from_pretrained(path, config=config, dtype=dtype, output_loading_info=True, **kwargs)
    lost = [name for name in sorted(found["missing_keys"]) if not (new_branch and ".indexer." in name)]
    wrong = [str(entry[0]) for entry in found["mismatched_keys"]]
    if lost or wrong:
        raise ConversionError(f"{path}: tensors missing or of another shape: {', '.join((lost + wrong)[:5])}")
    if new_branch:
        # transformers leaves modules that it does not know as the memory was.
        for layer in model.model.layers:
            layer.self_attn.indexer.reset_parameters()
    return model.eval()
