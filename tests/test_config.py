"""config.json in both shapes, and everything that must be refused in it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLConfig, MiniMaxM3VLTextConfig

import oracle
from longsight.model import ConfigError, ModelConfig


def published() -> dict[str, Any]:
    """The published config.json of MiniMax-M3, keys and values as released."""
    freq = [0] * 3 + [1] * 57
    return {
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
        "auto_map": {"AutoConfig": "configuration_minimax_m3_vl.MiniMaxM3VLConfig"},
        "model_type": "minimax_m3_vl",
        "image_token_index": 200025,
        "video_token_index": 200026,
        "image_seq_length": 576,
        "process_image_mode": "dynamic_res",
        "image_grid_pinpoints": [[336, 336]],
        "projector_hidden_act": "gelu",
        "projector_hidden_size": 6144,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "multimodal_projector_bias": True,
        "img_token_compression_config": {"image_token_compression_method": "patch_merge"},
        "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1280},
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.4",
        "text_config": {
            "architectures": ["MiniMaxM3SparseForCausalLM"],
            "vocab_size": 200064,
            "hidden_size": 6144,
            "num_hidden_layers": 60,
            "num_attention_heads": 64,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "intermediate_size": 3072,
            "dense_intermediate_size": 12288,
            "shared_intermediate_size": 3072,
            "max_position_embeddings": 1048576,
            "rms_norm_eps": 1e-6,
            "use_gemma_norm": True,
            "attention_output_gate": False,
            "rope_theta": 5000000,
            "rotary_dim": 64,
            "partial_rotary_factor": 0.5,
            "hidden_act": "swigluoai",
            "use_qk_norm": True,
            "qk_norm_type": "per_head",
            "tie_word_embeddings": False,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "n_shared_experts": 1,
            "scoring_func": "sigmoid",
            "use_routing_bias": True,
            "routed_scaling_factor": 2.0,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
            "moe_layer_freq": freq,
            "num_mtp_modules": 7,
            "num_nextn_predict_layers": 1,
            "sparse_attention_config": {
                "use_sparse_attention": True,
                "sparse_index_dim": 128,
                "sparse_num_index_heads": 4,
                "sparse_topk_blocks": 16,
                "sparse_block_size": 128,
                "sparse_score_type": "max",
                "sparse_init_block": 0,
                "sparse_local_block": 1,
                "sparse_attention_freq": list(freq),
                "sparse_disable_index_value": list(freq),
            },
        },
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    """The published config with one key set; `path` is dotted, inside text_config unless it starts with a slash."""
    config = copy.deepcopy(published())
    holder = config if path.startswith("/") else config["text_config"]
    *parents, key = path.removeprefix("/").split(".")
    for parent in parents:
        holder = holder[parent]
    holder[key] = value
    return config


def normalised() -> dict[str, Any]:
    """The published model as transformers writes it after reading it."""
    return dict(MiniMaxM3VLTextConfig(**published()["text_config"], dtype="bfloat16").to_dict())


def tiny(**overrides: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 8,
        "num_kv_heads": 2,
        "head_dim": 32,
        "rotary_dim": 16,
        "max_position_embeddings": 4096,
        "attention_kinds": ("full", "sparse"),
        "mlp_kinds": ("dense", "moe"),
    }
    return ModelConfig(**{**values, **overrides})


def test_the_published_file() -> None:
    config = ModelConfig.from_dict(published())
    assert config == ModelConfig(
        vocab_size=200064,
        hidden_size=6144,
        num_layers=60,
        num_heads=64,
        num_kv_heads=4,
        head_dim=128,
        rotary_dim=64,
        max_position_embeddings=1048576,
        attention_kinds=("full",) * 3 + ("sparse",) * 57,
        mlp_kinds=("dense",) * 3 + ("moe",) * 57,
        rope_theta=5e6,
        rms_norm_eps=1e-6,
        dense_intermediate_size=12288,
        intermediate_size=3072,
        shared_intermediate_size=3072,
        num_experts=128,
        experts_per_token=4,
        routed_scaling_factor=2.0,
        swiglu_alpha=1.702,
        swiglu_limit=7.0,
        index_dim=128,
        block_size=128,
        topk_blocks=16,
        local_blocks=1,
        init_blocks=0,
        dtype=torch.bfloat16,
    )


def test_cache_size_of_the_published_model() -> None:
    """137,472 bytes per token in bf16: 3 layers of 2048 and 57 of 2304."""
    config = ModelConfig.from_dict(published())
    assert config.page_bytes() == 128 * 137_472
    assert config.page_bytes(torch.float32) == 2 * config.page_bytes()
    assert config.page_layout(2).index_dim == 0
    assert config.page_layout(3).index_dim == 128


def test_both_shapes_describe_one_model() -> None:
    theirs = ModelConfig.from_dict(normalised())
    ours = ModelConfig.from_dict(published())
    assert theirs.bos_token_id == 200034  # transformers' class default; the published file has none
    assert (ours.bos_token_id, ours.eos_token_ids) == (None, ())
    assert normalised()["hidden_act"] == "silu"
    same = {**vars(theirs), "bos_token_id": None, "eos_token_ids": ()}
    assert ModelConfig(**same) == ours


def test_a_vision_language_config_of_transformers() -> None:
    """Its writer leaves text keys out that equal the class defaults."""
    config = MiniMaxM3VLConfig(text_config=oracle.text_config(heads=64, kv_heads=4), vision_config=oracle.VISION)
    written = json.loads(config.to_json_string())
    assert ModelConfig.from_dict(written) == ModelConfig.from_dict(oracle_text(heads=64, kv_heads=4))
    assert ModelConfig.from_dict(written).attention_kinds == ("full", "sparse", "sparse", "sparse")


def oracle_text(**kwargs: Any) -> dict[str, Any]:
    return dict(MiniMaxM3VLTextConfig(**oracle.text_config(**kwargs)).to_dict())


ROUND_TRIPS = {
    "published": lambda: ModelConfig.from_dict(published()),
    "odd rotary width": lambda: tiny(head_dim=96, rotary_dim=22, index_dim=48, eos_token_ids=(5, 7), bos_token_id=0),
    "two local, one initial": lambda: tiny(local_blocks=2, init_blocks=1, topk_blocks=4, tie_word_embeddings=True),
    "no sparse layer": lambda: tiny(attention_kinds=("full", "full"), dtype=torch.float32),
    "sparse switched off": lambda: tiny(attention_kinds=("full", "full"), sparse_disabled=True),
    "other numbers": lambda: tiny(swiglu_limit=3.5, rope_theta=1e4, routed_scaling_factor=1.5, rms_norm_eps=1e-5),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_to_dict_round_trips_through_json(name: str) -> None:
    config = ROUND_TRIPS[name]()
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_to_dict_may_stand_inside_a_vision_language_config() -> None:
    config = tiny(bos_token_id=3)
    assert ModelConfig.from_dict({"model_type": "minimax_m3_vl", "text_config": config.to_dict()}) == config


def test_to_dict_serves_readers_of_either_shape() -> None:
    written = ModelConfig.from_dict(published()).to_dict()
    raw_keys = set(published()["text_config"]["sparse_attention_config"])
    assert raw_keys == set(written["sparse_attention_config"])
    assert published()["text_config"].keys() - {"num_mtp_modules", "num_nextn_predict_layers"} <= written.keys()
    theirs = MiniMaxM3VLTextConfig(**written).to_dict()
    metadata = ("architectures", "transformers_version", "num_mtp_modules", "num_nextn_predict_layers")
    for key, value in normalised().items():
        if key not in (*metadata, "bos_token_id", "eos_token_id"):
            assert theirs[key] == value, key


@pytest.mark.parametrize("head_dim", [48, 80, 96, 112, 176, 208])
def test_transformers_rotates_the_width_we_write(head_dim: int) -> None:
    """A factor is a float: width / head_dim * head_dim must not fall below the width when it is cut to an integer."""
    for width in range(2, head_dim + 1, 2):
        factor = tiny(head_dim=head_dim, index_dim=256, rotary_dim=width).to_dict()["partial_rotary_factor"]
        assert int(head_dim * factor) == width


@pytest.mark.parametrize(
    ("keys", "width"),
    [
        ({"partial_rotary_factor": 0.5, "rotary_dim": 64}, 64),
        ({"partial_rotary_factor": 0.25}, 32),
        ({"rotary_dim": 96}, 96),
        ({}, 128),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 5e6}}, 64),
        ({"rope_scaling": None, "partial_rotary_factor": 1.0}, 128),
    ],
)
def test_rotated_width(keys: dict[str, Any], width: int) -> None:
    config = published()
    text = {k: v for k, v in config["text_config"].items() if k not in ("rotary_dim", "partial_rotary_factor")}
    config["text_config"] = {**text, **keys}
    assert ModelConfig.from_dict(config).rotary_dim == width


def test_a_bare_default_config_is_dense_as_in_transformers() -> None:
    """Not MiniMax-M3: no sparse layer, no dense MLP. Its index tensors, if any, are then refused by the loader."""
    config = ModelConfig.from_dict({"model_type": "minimax_m3_vl_text"})
    theirs = MiniMaxM3VLTextConfig()
    assert set(config.attention_kinds) == {"full"}
    assert set(theirs.layer_types) == {"full_attention"}
    assert set(config.mlp_kinds) == {"moe"}
    assert set(theirs.mlp_layer_types) == {"sparse"}
    assert config.max_position_embeddings == theirs.max_position_embeddings


def test_sparse_attention_switched_off() -> None:
    config = ModelConfig.from_dict(changed("sparse_attention_config.use_sparse_attention", False))
    assert set(config.attention_kinds) == {"full"}
    assert config.sparse_disabled
    assert not ModelConfig.from_dict(published()).sparse_disabled


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("architectures", ["Anything"]),
        ("_attn_implementation", "sdpa"),
        ("router_aux_loss_coef", 0.5),
        ("attention_dropout", 0.1),
        ("num_mtp_modules", 3),
        ("a_new_option", None),
        ("/vision_config", {"hidden_size": 5, "made_up": 1}),
        ("/image_seq_length", 12),
        ("quantization_config", None),
        ("norm_topk_prob", True),
    ],
)
def test_harmless_keys_change_nothing(path: str, value: Any) -> None:
    assert ModelConfig.from_dict(changed(path, value)) == ModelConfig.from_dict(published())


REFUSED = [
    # behaviours that the network does not have
    ("hidden_act", "gelu", "hidden_act is 'gelu'"),
    ("scoring_func", "softmax", "only 'sigmoid' is implemented"),
    ("use_routing_bias", False, "use_routing_bias is False"),
    ("n_shared_experts", 2, "n_shared_experts is 2"),
    ("use_gemma_norm", False, "use_gemma_norm"),
    ("use_qk_norm", False, "use_qk_norm"),
    ("qk_norm_type", "per_layer", "only 'per_head' is implemented"),
    ("attention_output_gate", True, "attention_output_gate"),
    ("attention_bias", True, "attention_bias"),
    ("norm_topk_prob", False, "norm_topk_prob"),
    ("n_group", 8, "n_group"),
    ("sparse_attention_config.sparse_score_type", "mean", "sparse_score_type is 'mean'; only 'max'"),
    ("sparse_attention_config.sparse_disable_index_value", [0] * 60, "index value path"),
    ("sparse_attention_config.sparse_num_index_heads", 2, "2 index heads for 4 key/value heads"),
    ("rope_scaling", {"rope_type": "yarn", "factor": 2.0}, "rope_scaling.rope_type is 'yarn'"),
    ("rope_parameters", {"rope_type": "linear", "factor": 2.0}, "only 'default'"),
    ("rope_parameters", {"rope_type": "default", "mrope_section": [1]}, "rope_parameters.mrope_section"),
    ("/quantization_config", {"quant_method": "fp8"}, "quantised checkpoints are not supported"),
    ("quantization_config", {"quant_method": "mxfp8"}, "quantised checkpoints are not supported"),
    # options that nobody here knows
    ("sliding_window", 4096, "sliding_window is 4096; this option is unknown"),
    ("final_logit_softcapping", 30.0, "final_logit_softcapping"),
    ("sparse_attention_config.sparse_new_idea", 1, "sparse_attention_config.sparse_new_idea"),
    ("/embedding_multiplier", 2.0, "embedding_multiplier"),
    # contradictions
    ("rotary_dim", 128, "rotary_dim is 128; it contradicts partial_rotary_factor 0.5"),
    ("rope_parameters", {"rope_theta": 1e4}, "rope_theta (5000000.0) and rope_parameters.rope_theta (10000.0)"),
    ("index_topk_blocks", 8, "index_topk_blocks (8) and sparse_topk_blocks (16)"),
    ("layer_types", ["full_attention"] * 60, "sparse_attention_freq"),
    ("mlp_layer_types", ["dense"] * 60, "moe_layer_freq"),
    ("num_experts", 64, "num_local_experts (128) and num_experts (64)"),
    ("sparse_attention_config.sparse_attention_freq", None, "does not say which layers"),
    # wrong types and values
    ("hidden_size", "6144", "hidden_size is '6144'; expected an integer"),
    ("hidden_size", 6144.0, "expected an integer"),
    ("hidden_size", True, "expected an integer"),
    ("hidden_size", -16, "expected an integer from 0"),
    ("hidden_size", 6140, "multiple of 16"),
    ("vocab_size", 0, "vocab_size is 0; it must be positive"),
    ("num_hidden_layers", 10**12, "num_hidden_layers is 1000000000000; expected an integer from 1 to 4096"),
    ("num_hidden_layers", 59, "expected 59 entries (num_hidden_layers)"),
    ("num_attention_heads", 62, "num_heads 62 must be"),
    ("head_dim", 64.5, "head_dim is 64.5; expected an integer"),
    ("rms_norm_eps", float("nan"), "rms_norm_eps is nan; expected a finite number"),
    ("rms_norm_eps", 0, "rms_norm_eps is 0.0; it must be a positive number"),
    ("rope_theta", -1, "rope_theta is -1.0"),
    ("partial_rotary_factor", 1e308, "partial_rotary_factor is 1e+308"),
    ("partial_rotary_factor", 0.01, "rotary_dim"),
    ("num_experts_per_tok", 129, "experts_per_token 129 exceeds num_experts 128"),
    ("moe_layer_freq", [0, 1, 2] * 20, "moe_layer_freq"),
    ("moe_layer_freq", {}, "moe_layer_freq is {}"),
    ("sparse_attention_config", [], "expected an object"),
    ("sparse_attention_config.sparse_block_size", 100, "block_size is 100"),
    ("sparse_attention_config.sparse_local_block", 0, "local_blocks 0 must be at least 1"),
    ("sparse_attention_config.sparse_init_block", 16, "topk_blocks 16 must hold the 1 local and 16 initial"),
    ("sparse_attention_config.use_sparse_attention", "yes", "expected true or false"),
    ("tie_word_embeddings", 1, "expected true or false"),
    ("eos_token_id", "</s>", "eos_token_id is '</s>'; expected a token id or a list"),
    ("/torch_dtype", "int8", "torch_dtype is 'int8'; expected one of bfloat16"),
    ("/model_type", "llama", "model_type is 'llama'; expected 'minimax_m3_vl'"),
    ("model_type", "minimax_m2", "text_config.model_type is 'minimax_m2'"),
    ("/text_config", None, "must have one"),
]


@pytest.mark.parametrize(("path", "value", "says"), REFUSED, ids=lambda v: str(v)[:40])
def test_refused_by_name(path: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(changed(path, value))
    assert says in str(caught.value)


def test_either_level_may_tie_the_embeddings() -> None:
    """As in transformers, whose top-level default is false."""
    for path in ("tie_word_embeddings", "/tie_word_embeddings"):
        config = changed(path, True)
        config.setdefault("tie_word_embeddings", False)
        assert ModelConfig.from_dict(config).tie_word_embeddings
    assert not ModelConfig.from_dict(published()).tie_word_embeddings


def test_contradicting_dtypes_are_refused() -> None:
    with pytest.raises(ConfigError, match="torch_dtype is 'bfloat16'; it contradicts dtype"):
        ModelConfig.from_dict(changed("/dtype", "float32"))


def test_index_heads_narrower_than_the_rotated_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="rotary_dim 64 exceeds index_dim 48"):
        ModelConfig.from_dict(changed("sparse_attention_config.sparse_index_dim", 48))


def test_switched_off_and_sparse_layers_contradict() -> None:
    config = changed("sparse_attention_config.use_sparse_attention", False)
    config["text_config"]["layer_types"] = ["full_attention"] * 59 + ["minimax_m3_sparse"]
    with pytest.raises(ConfigError, match="names sparse layers while use_sparse_attention is false"):
        ModelConfig.from_dict(config)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not valid JSON"),
        (b'{"model_type": "minimax_m3_vl_text"', "not valid JSON"),
        (b'{"model_type": "\xff\xfe"}', "not valid JSON"),
        (b"[1, 2]", "must hold a JSON object, got list"),
        (b"[" * 200_000, "not valid JSON"),
    ],
    ids=["empty", "cut", "not UTF-8", "a list", "200,000 deep"],
)
def test_files_that_are_no_config(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        ModelConfig.from_file(tmp_path)
    assert "config.json" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*config\.json: No such file"):
        ModelConfig.from_file(tmp_path)


def test_generation_config_names_the_stop_tokens(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(changed("eos_token_id", 9)))
    assert ModelConfig.from_file(tmp_path).eos_token_ids == (9,)
    (tmp_path / "generation_config.json").write_text(
        '{"bos_token_id": 200019, "eos_token_id": [200020, 7], "top_k": 40}'
    )
    config = ModelConfig.from_file(tmp_path / "config.json")
    assert (config.bos_token_id, config.eos_token_ids) == (200019, (200020, 7))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_kinds", ("full",)),
        ("mlp_kinds", ("dense", "sparse")),
        ("num_heads", 7),
        ("num_kv_heads", 0),
        ("head_dim", 512),
        ("head_dim", 40),
        ("index_dim", 8),
        ("max_position_embeddings", 0),
        ("rotary_dim", 15),
        ("rotary_dim", 0),
        ("rotary_dim", 48),
        ("swiglu_alpha", float("inf")),
        ("dtype", torch.int8),
    ],
)
def test_a_config_made_in_code_is_checked_too(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        tiny(**{field: value})
