"""config.json <-> the fields of ModelConfig, in both shapes that exist.

*Published* (raw): nested under `text_config`, sparse attention under `sparse_attention_config`, layers as 0/1 lists.
*Normalised* (what transformers writes): flat `index_*` keys, `layer_types`, `mlp_layer_types`, `rope_parameters`.
A key may come in both shapes at once, as `to_dict` writes it; then both must agree.

What happens to a key:
- read: it becomes a field;
- a rule (RULES): the network computes exactly one behaviour, any other value is refused;
- metadata (METADATA, or a name that starts with "_"): it cannot change a text model's logits and is ignored;
- anything else is refused by name, unless its value is null: an option we do not know may change results.
Missing keys take the defaults of transformers' config class, because its writer leaves out what equals them.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from longsight.model.errors import ConfigError
from longsight.model.json_object import MAX_INTEGER, JsonObject

if TYPE_CHECKING:
    from longsight.model.config import ModelConfig

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
CONVERTED_PREFIX = "longsight_"  # of the model types that hf/converted.py registers with transformers
MODEL_TYPE, TEXT_MODEL_TYPE = "minimax_m3_vl", "minimax_m3_vl_text"
MAX_LAYERS = 4096

# Behaviours that are built in: key -> accepted values. `hidden_act` is what the two shapes call the same clamped gate.
RULES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("swigluoai", "silu"),
    "scoring_func": ("sigmoid",),
    "use_routing_bias": (True,),
    "norm_topk_prob": (True,),
    "n_group": (1,),
    "topk_group": (1,),
    "n_shared_experts": (1,),
    "use_gemma_norm": (True,),
    "use_qk_norm": (True,),
    "qk_norm_type": ("per_head",),
    "attention_output_gate": (False,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}
METADATA = frozenset(
    {
        "architectures",
        "auto_map",
        "transformers_version",
        "tokenizer_class",
        "name_or_path",
        "unsloth_version",
        "use_cache",
        "pad_token_id",
        "initializer_range",
        "attention_dropout",
        "hidden_dropout",
        "output_router_logits",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "num_mtp_modules",
        "num_nextn_predict_layers",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "problem_type",
        "task_specific_params",
        "torchscript",
        "base_model_tp_plan",
        "base_model_pp_plan",
        "base_model_ep_plan",
    }
)
# Beside text_config: how images reach the text model. The text path reads none of it.
MEDIA = frozenset(
    {
        "vision_config",
        "image_token_index",
        "video_token_index",
        "image_token_id",
        "video_token_id",
        "image_seq_length",
        "image_grid_pinpoints",
        "process_image_mode",
        "projector_hidden_size",
        "projector_hidden_act",
        "multimodal_projector_bias",
        "merged_hidden_size",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "img_token_compression_config",
    }
)
SPARSE_KEYS = {  # normalised key -> key inside sparse_attention_config, default
    "index_n_heads": ("sparse_num_index_heads", 4),
    "index_head_dim": ("sparse_index_dim", 128),
    "index_block_size": ("sparse_block_size", 128),
    "index_topk_blocks": ("sparse_topk_blocks", 16),
    "index_local_blocks": ("sparse_local_block", 1),
}
SIZES = {  # field -> key, default of transformers' config class
    "vocab_size": ("vocab_size", 200064),
    "hidden_size": ("hidden_size", 6144),
    "num_heads": ("num_attention_heads", 64),
    "num_kv_heads": ("num_key_value_heads", 4),
    "max_position_embeddings": ("max_position_embeddings", 524288),
    "dense_intermediate_size": ("dense_intermediate_size", 12288),
    "intermediate_size": ("intermediate_size", 3072),
    "shared_intermediate_size": ("shared_intermediate_size", 3072),
    "experts_per_token": ("num_experts_per_tok", 4),
}
NUMBERS = {"rms_norm_eps": 1e-6, "routed_scaling_factor": 2.0, "swiglu_alpha": 1.702, "swiglu_limit": 7.0}


def with_generation_tokens(data: dict[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with the bos and eos tokens of generation_config.json, which is where decoding stops are declared."""
    tokens = {key: generation[key] for key in ("bos_token_id", "eos_token_id") if generation.get(key) is not None}
    text = data.get("text_config")
    if isinstance(text, Mapping):
        return {**data, "text_config": {**text, **tokens}}
    return {**data, **tokens}


def fields_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ModelConfig. Raises ConfigError for anything that is wrong, contradictory or unknown."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"config: expected an object, got {type(data).__name__}")
    outer = JsonObject(data)
    text = _text_config(outer)
    layers = _or(text.integer("num_hidden_layers", least=1, most=MAX_LAYERS), 60)
    fields: dict[str, Any] = {"num_layers": layers}
    for field, (key, default) in SIZES.items():
        fields[field] = _or(text.integer(key), default)
    for key, number in NUMBERS.items():
        fields[key] = _or(text.number(key), number)
    experts = text.integer("num_local_experts"), text.integer("num_experts")
    fields["num_experts"] = _agree(("num_local_experts", experts[0]), ("num_experts", experts[1]), 128)
    fields["head_dim"] = _or(text.integer("head_dim"), 128)
    fields.update(_rope(text, fields["head_dim"]))
    fields.update(_sparse(text, layers, fields["num_kv_heads"]))
    moe = text.kinds("moe_layer_freq", {0: "dense", 1: "moe"}, layers)
    mlp = text.kinds("mlp_layer_types", {"dense": "dense", "sparse": "moe"}, layers)
    fields["mlp_kinds"] = _agree(("moe_layer_freq", moe), ("mlp_layer_types", mlp), ("moe",) * layers)
    holders = [text] if text is outer else [text, outer]
    # transformers ties a vision-language model when either level says so.
    tied = [holder.boolean("tie_word_embeddings") for holder in holders]
    fields["tie_word_embeddings"] = any(tied)
    fields["dtype"] = _first([_dtype(holder) for holder in holders], torch.bfloat16)
    fields["bos_token_id"] = _first([holder.integer("bos_token_id") for holder in holders], None)
    fields["eos_token_ids"] = _first([_eos(holder) for holder in holders], ())
    text.finish(METADATA, RULES)
    outer.finish(METADATA | MEDIA, RULES)
    return fields


def _text_config(outer: JsonObject) -> JsonObject:
    kind = outer.get("model_type")
    if kind == TEXT_MODEL_TYPE:
        return outer
    if isinstance(kind, str) and kind.startswith(CONVERTED_PREFIX):
        raise outer.fail(
            "model_type",
            "this model was made by `longsight convert` and runs inside the transformers library only: use "
            "longsight.hf.load(DIRECTORY) in Python (docs/transformers.md)",
        )
    if kind != MODEL_TYPE:
        raise outer.fail("model_type", f"expected {MODEL_TYPE!r} or {TEXT_MODEL_TYPE!r}")
    text = outer.object("text_config")
    if text is None:
        raise outer.fail("text_config", f"a {MODEL_TYPE!r} config must have one")
    # The published file leaves it out.
    if text.get("model_type") not in (None, TEXT_MODEL_TYPE):
        raise text.fail("model_type", f"expected {TEXT_MODEL_TYPE!r}")
    return text


def _rope(text: JsonObject, head_dim: int) -> dict[str, Any]:
    """rope_theta and rotary_dim.

    The rotated width comes from partial_rotary_factor, with rotary_dim as its check. A file with rotary_dim alone means
    that width (transformers would rotate whole heads); one with neither rotates whole heads.
    """
    nested = text.object("rope_parameters") or JsonObject({}, "rope_parameters.")
    legacy = text.object("rope_scaling") or JsonObject({}, "rope_scaling.")
    for rope in (nested, legacy):
        for key in ("rope_type", "type"):
            if rope.get(key) not in (None, "default"):
                raise rope.fail(key, "only 'default' (no scaling) is implemented")
    thetas = ("rope_theta", text.number("rope_theta")), ("rope_parameters.rope_theta", nested.number("rope_theta"))
    factors = (
        ("partial_rotary_factor", text.number("partial_rotary_factor")),
        ("rope_parameters.partial_rotary_factor", nested.number("partial_rotary_factor")),
    )
    nested.finish(frozenset(), {})
    legacy.finish(frozenset(), {})
    factor, width = _agree(*factors, None), text.integer("rotary_dim")
    if factor is not None and not 0 < factor <= 1:
        raise ConfigError(f"config: partial_rotary_factor is {factor}; expected a number above 0, up to 1")
    rotated = None if factor is None else int(head_dim * factor)
    if None not in (rotated, width) and rotated != width:
        raise text.fail(
            "rotary_dim", f"it contradicts partial_rotary_factor {factor} of head_dim {head_dim} ({rotated})"
        )
    return {"rope_theta": _agree(*thetas, 5e6), "rotary_dim": _first([rotated, width], head_dim)}


def _sparse(text: JsonObject, layers: int, kv_heads: int) -> dict[str, Any]:
    raw = text.object("sparse_attention_config")
    sparse = raw or JsonObject({}, "sparse_attention_config.")
    enabled = _or(sparse.boolean("use_sparse_attention"), True)
    freq = sparse.kinds("sparse_attention_freq", {0: "full", 1: "sparse"}, layers)
    types = text.kinds("layer_types", {"full_attention": "full", "minimax_m3_sparse": "sparse"}, layers)
    if not enabled:
        if types is not None and "sparse" in types:
            raise text.fail("layer_types", "it names sparse layers while use_sparse_attention is false")
        kinds: tuple[str, ...] = ("full",) * layers
    else:
        if raw is not None and freq is None and types is None:
            raise ConfigError("config: sparse_attention_config without sparse_attention_freq does not say which layers")
        kinds = _agree(("sparse_attention_freq", freq), ("layer_types", types), ("full",) * layers)
    values = {}
    for flat, (nested, default) in SPARSE_KEYS.items():
        values[flat] = _agree((flat, text.integer(flat)), (nested, sparse.integer(nested)), default)
    if "sparse" in kinds and values["index_n_heads"] != kv_heads:
        raise ConfigError(
            f"config: {values['index_n_heads']} index heads for {kv_heads} key/value heads; each key/value head needs "
            "exactly one"
        )
    no_value = sparse.kinds("sparse_disable_index_value", {0: "value", 1: "none"}, layers) or ("none",) * layers
    if ("sparse", "value") in zip(kinds, no_value, strict=True):
        raise sparse.fail("sparse_disable_index_value", "an index value path (0 on a sparse layer) is not implemented")
    init_blocks = _or(sparse.integer("sparse_init_block"), 0)
    sparse.finish(frozenset(), {"sparse_score_type": ("max",)})
    return {
        "attention_kinds": kinds,
        "index_dim": values["index_head_dim"],
        "block_size": values["index_block_size"],
        "topk_blocks": values["index_topk_blocks"],
        "local_blocks": values["index_local_blocks"],
        "init_blocks": init_blocks,
        "sparse_disabled": not enabled,
    }


def _dtype(holder: JsonObject) -> torch.dtype | None:
    found = []
    for key in ("dtype", "torch_dtype"):
        value = holder.get(key)
        if value is None:
            continue
        name = str(value).removeprefix("torch.")
        if name not in DTYPES:
            raise holder.fail(key, f"expected one of {', '.join(DTYPES)}")
        found.append(DTYPES[name])
    if len(set(found)) > 1:
        raise holder.fail("torch_dtype", "it contradicts dtype")
    return found[0] if found else None


def _eos(holder: JsonObject) -> tuple[int, ...] | None:
    value = holder.get("eos_token_id")
    if value is None:
        return None
    values = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= MAX_INTEGER for v in values):
        raise holder.fail("eos_token_id", "expected a token id or a list of them")
    return tuple(values)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _first(values: list[Any], default: Any) -> Any:
    return next((value for value in values if value is not None), default)


def _agree(a: tuple[str, Any], b: tuple[str, Any], default: Any) -> Any:
    """The value of two names for one thing; ConfigError if they are both there and differ."""
    if a[1] is not None and b[1] is not None and a[1] != b[1]:
        raise ConfigError(
            f"config: {a[0]} ({reprlib.repr(a[1])}) and {b[0]} ({reprlib.repr(b[1])}) mean the same and differ"
        )
    return _first([a[1], b[1]], default)


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """One flat text config that readers of either shape understand."""
    dtype = next(name for name, value in DTYPES.items() if value == config.dtype)
    factor = config.rotary_dim / config.head_dim
    if int(config.head_dim * factor) != config.rotary_dim:
        factor = math.nextafter(factor, 2.0)
    sparse = [int(kind == "sparse") for kind in config.attention_kinds]
    result: dict[str, Any] = {"architectures": ["MiniMaxM3VLForCausalLM"], "model_type": TEXT_MODEL_TYPE}
    result |= {"dtype": dtype, "torch_dtype": dtype, "num_hidden_layers": config.num_layers}
    result |= {key: getattr(config, field) for field, (key, _) in SIZES.items()}
    result |= {key: getattr(config, key) for key in NUMBERS}
    result |= {
        "num_local_experts": config.num_experts,
        "n_shared_experts": 1,
        "head_dim": config.head_dim,
        "hidden_act": "swigluoai",
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "use_gemma_norm": True,
        "use_qk_norm": True,
        "qk_norm_type": "per_head",
        "attention_output_gate": False,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids) or None,
        "rope_theta": config.rope_theta,
        "rotary_dim": config.rotary_dim,
        "partial_rotary_factor": factor,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "partial_rotary_factor": factor,
        },
        "mlp_layer_types": ["sparse" if kind == "moe" else "dense" for kind in config.mlp_kinds],
        "moe_layer_freq": [int(kind == "moe") for kind in config.mlp_kinds],
        "layer_types": ["minimax_m3_sparse" if flag else "full_attention" for flag in sparse],
        "index_n_heads": config.num_kv_heads,
        "index_head_dim": config.index_dim,
        "index_block_size": config.block_size,
        "index_topk_blocks": config.topk_blocks,
        "index_local_blocks": config.local_blocks,
        "sparse_attention_config": {
            "use_sparse_attention": not config.sparse_disabled,
            "sparse_attention_freq": sparse,
            "sparse_disable_index_value": sparse,
            "sparse_num_index_heads": config.num_kv_heads,
            "sparse_index_dim": config.index_dim,
            "sparse_block_size": config.block_size,
            "sparse_topk_blocks": config.topk_blocks,
            "sparse_local_block": config.local_blocks,
            "sparse_init_block": config.init_blocks,
            "sparse_score_type": "max",
        },
    }
    return result
