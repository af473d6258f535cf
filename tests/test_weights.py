"""Checkpoints on disk: both dialects, shards, and every way a file or a tensor can be wrong."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import oracle
from longsight.model import CheckpointError, Model, ModelConfig, load_model
from longsight.model import checkpoint as checkpoint_module
from longsight.model.checkpoint import Checkpoint
from longsight.model.moe import MixtureOfExperts
from longsight.model.weights import canonical, expected_tensors, load_weights
from longsight.ops import Batch, UnsupportedError, supports
from test_config import published

MAIN = "cpu" if supports("cpu") is None else "reference"
LENGTH = 120
FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of transformers' text-only class."""
    return oracle.save(oracle.build(oracle.text_config()), tmp_path_factory.mktemp("fused"))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the published names, vision tensors included."""
    return oracle.save(oracle.build_vision(oracle.text_config()), tmp_path_factory.mktemp("disk"))


@pytest.fixture
def copied(disk: Path, tmp_path: Path) -> Path:
    return shutil.copytree(disk, tmp_path / "checkpoint")


def logits(model: Model, length: int = LENGTH) -> Tensor:
    tokens = torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(3))
    pages = -(-length // model.config.block_size)
    return model.forward(tokens, Batch.build([(length, length, list(range(pages)))]), model.allocate_cache(pages))


def edit(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    tensors = load_file(directory / FILE)
    change(tensors)
    save_file(tensors, directory / FILE)
    return directory


def edit_config(directory: Path, **text_keys: Any) -> Path:
    config = json.loads((directory / "config.json").read_text())
    config.get("text_config", config).update(text_keys)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path, backend=MAIN)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("language_model.model.embed_tokens.weight", "embed_tokens.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.norm.weight", "norm.weight"),
        ("model.language_model.norm.weight", "norm.weight"),
        ("model.layers.3.self_attn.indexer.q_norm.weight", "layers.3.self_attn.index_q_norm.weight"),
        ("model.layers.3.mlp.gate.weight", "layers.3.block_sparse_moe.gate.weight"),
        ("model.layers.0.mlp.gate_proj.weight", "layers.0.mlp.gate_proj.weight"),
        ("model.layers.3.mlp.gate.e_score_correction_bias", "layers.3.block_sparse_moe.e_score_correction_bias"),
        ("model.layers.3.mlp.experts.down_proj", "layers.3.block_sparse_moe.experts.down_proj"),
        ("vision_tower.vision_model.pre_layrnorm.bias", None),
        ("model.vision_tower.layers.0.mlp.fc1.weight", None),
        ("multi_modal_projector.linear_1.bias", None),
        ("patch_merge_mlp.linear_2.weight", None),
        ("language_model.model.mtp.layers.0.enorm.weight", None),
        ("mtp.layers.0.embed_tokens.weight", None),
    ],
)
def test_canonical_names(name: str, expected: str | None) -> None:
    assert canonical(name) == expected


def test_the_published_model_has_the_published_number_of_tensors() -> None:
    """23,416 in its index, of which the vision tower and projectors are 32 * 16 + 3 + 8."""
    expected = expected_tensors(ModelConfig.from_dict(published()), ())
    assert len(expected) == 23_416 - (32 * 16 + 3 + 8)
    assert expected["layers.59.block_sparse_moe.experts.127.w2.weight"] == (6144, 3072)
    assert expected["layers.3.self_attn.index_q_proj.weight"] == (512, 6144)
    assert "layers.2.self_attn.index_q_proj.weight" not in expected


def test_both_dialects_load_the_same_model(fused: Path, disk: Path) -> None:
    a, b = load_model(fused, backend=MAIN), load_model(disk, backend=MAIN)
    assert torch.equal(logits(a), logits(b))
    assert a.weight_bytes == b.weight_bytes


def test_shards_load_the_same_model(disk: Path, tmp_path: Path) -> None:
    sharded = oracle.save(oracle.build_vision(oracle.text_config()), tmp_path, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 5
    assert torch.equal(logits(load_model(sharded, backend=MAIN)), logits(load_model(disk, backend=MAIN)))


def test_a_single_file_of_another_name_is_found(copied: Path, disk: Path) -> None:
    (copied / FILE).rename(copied / "weights.safetensors")
    assert torch.equal(logits(load_model(copied, backend=MAIN)), logits(load_model(disk, backend=MAIN)))


def test_our_own_config_loads_the_same_model(copied: Path, disk: Path) -> None:
    written = ModelConfig.from_file(copied).to_dict()
    (copied / "config.json").write_text(json.dumps(written))
    assert torch.equal(logits(load_model(copied, backend=MAIN)), logits(load_model(disk, backend=MAIN)))


def test_multi_token_prediction_tensors_are_ignored(copied: Path, disk: Path) -> None:
    edit(copied, lambda t: t.update({"language_model.model.mtp.layers.0.enorm.weight": torch.ones(3)}))
    assert torch.equal(logits(load_model(copied, backend=MAIN)), logits(load_model(disk, backend=MAIN)))


def test_tied_embeddings(tmp_path: Path) -> None:
    network = oracle.build(oracle.text_config(tie_word_embeddings=True))
    tied = oracle.save(network, tmp_path / "tied")
    assert "lm_head.weight" not in Checkpoint(tied).shapes
    tokens = torch.randint(3, 300, (LENGTH,), generator=torch.Generator().manual_seed(3))
    expected, _ = oracle.run(network, tokens)
    assert float((logits(load_model(tied, backend=MAIN)) - expected).abs().max()) < 5e-5


def test_sparse_attention_switched_off_is_the_dense_model(copied: Path, tmp_path: Path) -> None:
    """The index tensors stay in the file, unread."""
    network = oracle.build_vision(oracle.text_config())
    dense = oracle.build_vision(oracle.text_config(layers="ffff"))
    dense.load_state_dict({n: v for n, v in network.state_dict().items() if "indexer" not in n})
    tokens = torch.randint(3, 300, (LENGTH,), generator=torch.Generator().manual_seed(3))
    expected, _ = oracle.run(dense, tokens)
    config = json.loads((copied / "config.json").read_text())
    del config["text_config"]["layer_types"]
    config["text_config"]["sparse_attention_config"] = {"use_sparse_attention": False}
    (copied / "config.json").write_text(json.dumps(config))
    actual = logits(load_model(copied, backend=MAIN))
    assert float((actual - expected).abs().max()) < 5e-5
    assert float((actual - oracle.run(network, tokens)[0]).abs().max()) > 0.1


def test_memory_accounting(disk: Path) -> None:
    """weight_bytes is the size of the packed text model: rows are padded to 16, nothing else is added."""
    config = ModelConfig.from_file(disk)
    count = 0
    for name, shape in expected_tensors(config, ()).items():
        rows = -(-shape[0] // 16) * 16 if len(shape) == 2 and name != "embed_tokens.weight" else shape[0]
        count += rows * (shape[1] if len(shape) == 2 else 1)
    assert load_model(disk, backend=MAIN).weight_bytes == 4 * count
    # In bf16 everything halves but the routers.
    routers = 3 * (16 * 64 + 8)
    assert load_model(disk, backend=MAIN, dtype=torch.bfloat16).weight_bytes == 2 * count + 2 * routers


def test_routers_stay_in_fp32(disk: Path) -> None:
    loaded = load_weights(Checkpoint(disk), ModelConfig.from_file(disk), torch.bfloat16)
    stored = load_file(disk / FILE)
    for i, layer in enumerate(loaded.layers):
        if isinstance(layer.mlp, MixtureOfExperts):
            name = f"language_model.model.layers.{i}.block_sparse_moe.e_score_correction_bias"
            assert torch.equal(layer.mlp.router.bias, stored[name])
            assert layer.mlp.router.weight.data.dtype == torch.float32
            assert layer.mlp.experts.down[0].data.dtype == torch.bfloat16
    assert loaded.embedding.dtype == loaded.norm.dtype == torch.bfloat16


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_precision_files_run_in_fp32(copied: Path, stored: torch.dtype) -> None:
    edit(copied, lambda t: t.update({n: v.to(stored).float() for n, v in t.items()}))
    rounded = logits(load_model(copied, backend=MAIN))
    edit(copied, lambda t: t.update({n: v.to(stored) for n, v in t.items()}))
    assert torch.equal(logits(load_model(copied, backend=MAIN, dtype=torch.float32)), rounded)


def test_progress_counts_every_byte_of_the_text_model(disk: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_model(disk, backend=MAIN, progress=lambda done, total: seen.append((done, total)))
    text = sum(t.nbytes for n, t in load_file(disk / FILE).items() if n.startswith("language_model."))
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {text}
    assert seen[-1] == (text, text)


def test_loading_does_not_keep_the_file_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File-backed resident memory stays bounded while a 100 MB checkpoint is read, and nothing is mapped afterwards."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    config = oracle.text_config(vocab=64, hidden=512, experts=16, intermediate_size=512)
    path = oracle.save(oracle.build(config), tmp_path)
    size = (path / FILE).stat().st_size
    assert size > 100 << 20
    monkeypatch.setattr(checkpoint_module, "REMAP_BYTES", 1 << 20)

    def mapped() -> int:
        return next(
            int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("RssFile")
        )

    peaks: list[int] = []
    before = mapped()
    model = load_model(path, backend=MAIN, progress=lambda *_: peaks.append(mapped() - before))
    assert max(peaks) < size // 3
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert model.weight_bytes > 0.9 * size


# What is missing, unexpected or misshapen is named, before any data is read.

ATTENTION = "language_model.model.layers.2.self_attn."


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(ATTENTION + "v_proj.weight"), ["missing layers.2.self_attn.v_proj.weight"]),
        (lambda t: t.pop("language_model.lm_head.weight"), ["missing lm_head.weight"]),
        (
            lambda t: t.pop("language_model.model.layers.1.block_sparse_moe.experts.5.w3.weight"),
            ["missing layers.1.block_sparse_moe.experts.5.w3.weight"],
        ),
        (
            lambda t: [t.pop(n) for n in list(t) if "index_" in n],
            ["missing layers.1.self_attn.index_q_proj.weight", "and 6 more", "never run as a dense one"],
        ),
        (
            lambda t: t.update({"language_model.model.layers.4.input_layernorm.weight": torch.ones(64)}),
            ["unexpected language_model.model.layers.4.input_layernorm.weight"],
        ),
        (
            lambda t: t.update({ATTENTION + "q_proj.bias": torch.ones(256)}),
            ["unexpected " + ATTENTION + "q_proj.bias"],
        ),
        (
            lambda t: t.update({ATTENTION + "index_v_proj.weight": torch.ones(32, 64)}),
            ["unexpected " + ATTENTION + "index_v_proj.weight"],
        ),
        (
            lambda t: t.update({ATTENTION + "q_proj.weight": torch.ones(256, 32)}),
            [f"wrong shape: {ATTENTION}q_proj.weight [256, 32] (expected [256, 64])"],
        ),
        (
            lambda t: t.update({ATTENTION + "q_norm.weight": torch.ones(32, 1)}),
            [f"{ATTENTION}q_norm.weight [32, 1] (expected [32])"],
        ),
        (
            lambda t: t.update({ATTENTION + "q_proj.weight": torch.ones(256, 64, dtype=torch.int8)}),
            ["unsupported dtype (accepted: BF16, F16, F32)", ATTENTION + "q_proj.weight I8"],
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(64)}),
            ["'language_model.model.norm.weight'", "'model.norm.weight'", "two names of one tensor"],
        ),
        (
            lambda t: [
                t.pop(ATTENTION + "q_norm.weight"),
                t.update({"extra": torch.ones(1), ATTENTION + "k_norm.weight": torch.ones(1)}),
            ],
            ["missing layers.2.self_attn.q_norm.weight", "unexpected extra", "k_norm.weight [1] (expected [32])"],
        ),
    ],
)
def test_wrong_tensors_are_named(copied: Path, change: Any, says: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    edit(copied, change)
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("data was read before the names were checked"))
    message = refused(copied)
    for part in says:
        assert part in message
    assert len(message) < 2000


def test_index_tensors_in_a_full_layer_are_refused(copied: Path) -> None:
    """A config that lost its layer list must not turn a sparse model into a dense one in silence."""
    edit_config(copied, layer_types=["full_attention"] * 4)
    assert "the config calls a layer with index tensors full attention" in refused(copied)


def test_half_of_the_fused_experts(fused: Path, tmp_path: Path) -> None:
    path = shutil.copytree(fused, tmp_path / "checkpoint")
    edit(path, lambda t: t.pop("model.layers.1.mlp.experts.gate_up_proj"))
    assert "missing layers.1.block_sparse_moe.experts.gate_up_proj" in refused(path)


def test_a_tied_model_must_not_bring_a_head(copied: Path) -> None:
    edit_config(copied, tie_word_embeddings=True)
    assert "unexpected language_model.lm_head.weight" in refused(copied)


def test_a_dtype_that_does_not_run(copied: Path) -> None:
    edit_config(copied, dtype="float16")
    with pytest.raises(UnsupportedError, match=r"cannot run in torch\.float16; ask for dtype torch\.bfloat16"):
        load_model(copied, backend=MAIN)
    assert load_model(copied, backend=MAIN, dtype=torch.float32).dtype == torch.float32


# Files that are broken or hostile.


def header(entries: Any, *, length: int | None = None, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "cut inside the length": b"\x08\x00",
    "absurd header length": header({}, length=2**63),
    "header longer than the file": header({}, length=10**6),
    "header is no JSON": header(b"}{ not json"),
    "header is a list": header([]),
    "data cut": header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, data=b"\0" * 15),
    "data left over": header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, data=b"\0" * 17),
    "offsets backwards": header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}, data=b"\0" * 16),
    "shape against offsets": header({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}}, data=b"\0" * 16),
    "shape overflows": header({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 16]}}, data=b"\0" * 16),
    "unknown dtype": header({"a": {"dtype": "F33", "shape": [4], "data_offsets": [0, 16]}}, data=b"\0" * 16),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(copied: Path, name: str) -> None:
    (copied / FILE).write_bytes(BROKEN[name])
    message = refused(copied)
    assert f"{copied / FILE} is not a readable safetensors file" in message
    assert "\n" not in message


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
def test_a_truncated_checkpoint_is_named(copied: Path, keep: float) -> None:
    whole = (copied / FILE).read_bytes()
    (copied / FILE).write_bytes(whole[: int(len(whole) * keep)])
    assert f"{copied / FILE} is not a readable safetensors file" in refused(copied)


def shard(directory: Path, index: Any, **files: dict[str, Tensor]) -> Path:
    """Replace the weights by an index and shards."""
    (directory / FILE).unlink(missing_ok=True)
    for name, tensors in files.items():
        save_file(tensors, directory / f"{name}.safetensors")
    (directory / INDEX).write_text(index if isinstance(index, str) else json.dumps(index))
    return directory


@pytest.mark.parametrize(
    "file",
    ["../outside.safetensors", "/etc/outside.safetensors", "a/b.safetensors", "..", "", "model.bin", 7, None],
)
def test_an_index_cannot_point_outside_the_directory(copied: Path, file: Any) -> None:
    save_file({"a": torch.ones(1)}, copied.parent / "outside.safetensors")
    message = refused(shard(copied, {"weight_map": {"a": file}}))
    assert f"puts tensor 'a' in {file!r}; expected the name of a .safetensors file beside it" in message


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("{", "is not valid JSON"),
        ([1], "must hold a JSON object"),
        ({}, "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": ["a"]}, "has no weight_map"),
        ({"weight_map": {"x": "gone.safetensors"}}, "gone.safetensors does not exist"),
        (
            {"weight_map": {"x": "a.safetensors", "y": "a.safetensors"}},
            "puts tensor 'y' in a.safetensors, which lacks it",
        ),
        ({"weight_map": {"x": "b.safetensors"}}, "puts tensor 'x' in b.safetensors, which lacks it"),
        (
            {"weight_map": {"x": "a.safetensors", "z": "c.safetensors"}},
            "tensor 'x' is in both a.safetensors and c.safetensors",
        ),
    ],
)
def test_a_wrong_index_is_named(copied: Path, index: Any, says: str) -> None:
    files = {"a": "x", "b": "y", "c": "xz"}
    tensors = {file: {name: torch.ones(1) for name in names} for file, names in files.items()}
    assert says in refused(shard(copied, index, **tensors))


def test_directories_without_weights(tmp_path: Path, copied: Path) -> None:
    assert "is not a directory" in refused(tmp_path / "nowhere")
    (copied / FILE).rename(copied / "one.safetensors")
    shutil.copy(copied / "one.safetensors", copied / "two.safetensors")
    assert "several without an index: one.safetensors, two.safetensors" in refused(copied)
    for file in copied.glob("*.safetensors"):
        file.unlink()
    (copied / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "holds neither model.safetensors nor model.safetensors.index.json" in refused(copied)
