"""Conversion of tiny random models whose attention is peaked: what the index branch learns, what the sparse model
computes, what is saved and loaded, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config

import longsight.hf
from longsight.cli.main import main
from longsight.hf import ConversionError, PagedCache
from longsight.hf.cache import PagedLayer
from longsight.hf.convert import LOG, Result, Settings, convert, hidden, next_token_loss
from longsight.hf.converted import SparseAttention
from longsight.hf.packing import Packer, pack, read_pieces
from longsight.hf.training import Trace
from longsight.ops import UnsupportedError
from longsight.ops.training import choose
from longsight.train.batch import IGNORED
from oracle import cached
from tiny_hf import SIZES, dense_model, write_byte_tokenizer, write_dense_checkpoint

BLOCK, TOPK = 16, 3
SETTINGS = Settings(block_size=BLOCK, topk=TOPK, length=256, batch=2, warmup_steps=60, continue_steps=10, index_lr=0.04)
QUICK = replace(SETTINGS, warmup_steps=1, continue_steps=1, length=64, batch=1)
TOLERANCE = 2e-5
DOCS = Path(__file__).parents[1] / "docs"
TEXTS = [DOCS / "kernels.md", DOCS / "engine.md"]


class Converted:
    """A tiny dense checkpoint and what became of it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.source = write_dense_checkpoint(folder / "dense", kind)
        self.before = digest(self.source)
        self.out = folder / "sparse"
        self.result: Result = convert(self.source, TEXTS, self.out, SETTINGS)
        self.model = longsight.hf.load(self.out)
        self.dense = AutoModelForCausalLM.from_pretrained(self.source, attn_implementation="eager").eval()


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(request.param, tmp_path_factory.mktemp(request.param))


def digest(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def tokens(n: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (1, n), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Any, ids: Tensor, **kwargs: Any) -> Tensor:
    found: Tensor = model(ids, **{"use_cache": False, **kwargs}).logits
    return found


def test_the_branch_learns(converted: Converted) -> None:
    before, after = converted.result.before, converted.result.after
    assert converted.result.held_out
    assert before.captured is not None
    assert after.captured is not None
    for layer in range(SIZES["num_hidden_layers"]):
        assert after.kl[layer] < 0.6 * before.kl[layer]
        assert after.captured[layer] > before.captured[layer] + 0.1
    assert [step.stage for step in converted.result.steps] == ["warmup"] * 60 + ["sparse"] * 10
    assert all(math.isfinite(step.loss or math.nan) for step in converted.result.steps[60:])


def test_the_original_is_untouched_and_its_weights_are_kept(converted: Converted) -> None:
    assert digest(converted.source) == converted.before
    old, new = converted.dense.state_dict(), converted.model.state_dict()
    assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())
    assert {name for name in new.keys() - old.keys() if ".self_attn.indexer." not in name} == set()


def test_what_is_saved_loads_to_the_same_bits(converted: Converted, tmp_path: Path) -> None:
    ids = tokens(120)
    want = logits(converted.model, ids)
    converted.model.save_pretrained(tmp_path / "again")
    for again in (
        longsight.hf.load(tmp_path / "again"),
        AutoModelForCausalLM.from_pretrained(converted.out),
        AutoModelForCausalLM.from_pretrained(converted.out, attn_implementation="longsight"),
    ):
        assert torch.equal(logits(again.eval(), ids), want)
        assert again.config._attn_implementation == "longsight"
    config = json.loads((converted.out / "config.json").read_text())
    assert config["model_type"].startswith("longsight_")
    assert (config["index_block_size"], config["index_topk_blocks"], config["index_head_dim"]) == (BLOCK, TOPK, 32)
    with safe_open(converted.out / "model.safetensors", "pt") as file:
        assert "model.layers.1.self_attn.indexer.k_norm.weight" in file.keys()  # noqa: SIM118


def test_short_texts_are_dense(converted: Converted) -> None:
    ids = tokens(BLOCK * TOPK)
    torch.testing.assert_close(logits(converted.model, ids), logits(converted.dense, ids), rtol=0, atol=TOLERANCE)


def reference_mask(attention: SparseAttention, x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """The formula, token by token and in plain torch: bool [H_q, T, T], what each query head may read. x [T, C]."""
    branch, (n, _) = attention.indexer, x.shape

    def head(projection: Any, norm: Any) -> Tensor:
        y = (x @ projection.weight.T).view(n, -1, 32).double()
        y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + norm.weight.double())
        # RoPE of the main heads has 16 frequencies; the 8 pairs of the index heads take every other one.
        angles = positions[:, None].double() * theta ** (-2 * torch.arange(0, 16, 2).double() / 32)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        a, b = y[..., :8], y[..., 8:16]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, y[..., 16:]), -1)

    queries, keys = head(branch.q_proj, branch.q_norm), head(branch.k_proj, branch.k_norm)[:, 0]
    allowed = torch.zeros(queries.shape[1], n, n, dtype=torch.bool)
    for group in range(queries.shape[1]):
        for t in range(n):
            scores = queries[t, group] @ keys[: t + 1].T
            best = [scores[b : b + BLOCK].max().item() for b in range(0, t + 1, BLOCK)]
            best[-1] = math.inf
            for b in sorted(range(len(best)), key=lambda b: -best[b])[:TOPK]:
                allowed[group, t, b * BLOCK : min((b + 1) * BLOCK, t + 1)] = True
    return allowed.repeat_interleave(attention.num_key_value_groups, 0)


def reference(converted: Converted, ids: Tensor) -> Tensor:
    """Logits [1, T, V] of the dense model under the masks that the formula gives each layer."""
    handles = []
    for layer, sparse in zip(converted.dense.model.layers, converted.model.model.layers, strict=True):

        def masked(_module: Any, _args: Any, kwargs: Any, sparse: Any = sparse) -> Any:
            positions = torch.arange(ids.shape[1])
            allowed = reference_mask(sparse.self_attn, kwargs["hidden_states"][0], positions, 1e8)
            return (), {**kwargs, "attention_mask": torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)[None]}

        handles.append(layer.self_attn.register_forward_pre_hook(masked, with_kwargs=True))
    try:
        return logits(converted.dense, ids)
    finally:
        for handle in handles:
            handle.remove()


def test_long_texts_follow_the_formula(converted: Converted) -> None:
    ids = tokens(131)
    want = reference(converted, ids)
    assert (want - logits(converted.dense, ids)).abs().max() > 0.1, "sparse: the masks hide something that matters"
    torch.testing.assert_close(logits(converted.model, ids), want, rtol=0, atol=TOLERANCE)
    stepped = PagedCache()
    pieces = [logits(converted.model, part, **cached(stepped)) for part in ids.split(19, 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), want, rtol=0, atol=TOLERANCE)


def test_generate_runs_over_pages(converted: Converted) -> None:
    ids, cache = tokens(90), DynamicCache(config=converted.model.config)
    made = converted.model.generate(
        ids, attention_mask=torch.ones_like(ids), **cached(cache), max_new_tokens=20, do_sample=False,
        eos_token_id=None, pad_token_id=256,
    )  # fmt: skip
    for layer in cache.layers:
        assert isinstance(layer, PagedLayer)
        assert layer.pages is not None
        assert layer.pages.index_k is not None
    whole = logits(converted.model, made)
    assert whole[0, 89:-1].argmax(-1).tolist() == made[0, 90:].tolist()


def test_training_and_serving_agree(converted: Converted) -> None:
    """Packed documents in a training step give each document's own logits; RoPE's positions do not move its blocks."""
    documents = [tokens(n, seed=n)[0] for n in (90, 1, 77)]
    batch = pack(documents)
    alone = torch.cat([logits(converted.model, document[None]) for document in documents], 1)
    for shift in (0, 500):
        moved = replace(batch, rope_positions=batch.rope_positions + shift)
        trace = Trace("sparse", batch.documents, choose()[0])
        with torch.no_grad():
            packed = converted.model.lm_head(hidden(converted.model, moved, trace))
        torch.testing.assert_close(packed, alone, rtol=0, atol=2e-3 if shift else TOLERANCE)


def test_each_loss_moves_its_own(converted: Converted) -> None:
    model = longsight.hf.load(converted.out).requires_grad_(True)
    batch = pack([tokens(100)[0]])
    trace = Trace("sparse", batch.documents, choose()[0])
    loss = next_token_loss(model, hidden(model, batch, trace), batch.targets)
    index = model.index_parameters()
    torch.stack(trace.kl).sum().backward(retain_graph=True)
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == set(index)
    model.zero_grad()
    loss.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {name for name, _ in model.named_parameters()} - set(index)
    shifted = torch.nn.functional.cross_entropy(logits(model, tokens(100))[0, :-1], tokens(100)[0, 1:])
    torch.testing.assert_close(loss.detach(), shifted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen2", "mistral"])
def test_the_other_families_and_a_trained_backbone(kind: str, tmp_path: Path) -> None:
    source = write_dense_checkpoint(tmp_path / "dense", kind, tie_word_embeddings=kind == "qwen2")
    settings = replace(QUICK, continue_steps=3, train_backbone=True, backbone_lr=1e-3)
    result = convert(source, TEXTS, tmp_path / "sparse", settings)
    assert result.steps[-1].loss is not None
    model, dense = longsight.hf.load(tmp_path / "sparse"), AutoModelForCausalLM.from_pretrained(source)
    assert not torch.equal(model.lm_head.weight, dense.lm_head.weight), "the backbone was trained"
    assert logits(model, tokens(100)).isfinite().all()


def test_bfloat16(tmp_path: Path) -> None:
    source = write_dense_checkpoint(tmp_path / "dense", "llama")
    convert(source, TEXTS, tmp_path / "sparse", replace(QUICK, dtype=torch.bfloat16))
    model = longsight.hf.load(tmp_path / "sparse")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert logits(model, tokens(100)).isfinite().all()


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    source = write_dense_checkpoint(tmp_path / "dense", "llama")
    for name in ("a", "b"):
        convert(source, TEXTS, tmp_path / name, QUICK)
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert same[0] == same[1]


def test_batches_are_pieces_of_the_text_and_the_probe_is_apart(tmp_path: Path) -> None:
    pieces = [torch.full((n,), i) for i, n in enumerate([50, 64, 3, 64, 20, 64, 64, 31])]
    packer = Packer(pieces, 64, seed=3)
    held = set(packer.probe.tokens.tolist())
    seen: set[int] = set()
    for step in range(20):
        batch = packer.batch(step)
        assert len(batch.tokens) == batch.documents.rows == 64
        for begin, end in batch.documents.bounds:
            assert len(set(batch.tokens[begin:end].tolist())) == 1
            assert batch.targets[end - 1] == IGNORED
        assert torch.equal(batch.tokens, packer.batch(step).tokens)
        seen |= set(batch.tokens.tolist())
    assert seen.isdisjoint(held)
    assert seen | held == set(range(8))


def swapped(**more: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, **more}))

    return change


def truncated(directory: Path) -> None:
    model = dense_model("llama", num_hidden_layers=1)
    model.save_pretrained(directory)
    swapped(num_hidden_layers=2)(directory)


def no_attention(directory: Path) -> None:
    GPT2Config().save_pretrained(directory)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", no_attention, "model_type 'gpt2' has no grouped-query attention .* llama, mistral, qwen2, qwen3"),
        ("mistral", swapped(sliding_window=128), "a sliding window of 128"),
        (
            "qwen3",
            swapped(use_sliding_window=True, sliding_window=64, layer_types=["full_attention", "sliding_attention"]),
            "layers of full_attention, sliding_attention",
        ),
        ("llama", swapped(model_type="abacus"), "abacus"),
        ("llama", swapped(model_type="longsight_llama"), "a longsight_llama model has its index branch already"),
        ("llama", swapped(head_dim=24), "head_dim 24 is not a multiple of 16"),
        ("llama", truncated, "tensors missing or of another shape: model.layers.1"),
    ],
)
def test_models_that_cannot_be_converted(
    kind: str, change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    source = write_dense_checkpoint(tmp_path / "dense", kind)
    change(source)
    with pytest.raises(ConversionError, match=message):
        convert(source, TEXTS, tmp_path / "sparse", QUICK)
    assert not (tmp_path / "sparse").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"length": 48}, "length 48 leaves nothing to choose: 3 blocks of 16 tokens hold 48"),
        ({"topk": 0}, "topk 0 must be at least 1"),
        ({"seed": 1 << 32}, "seed 4294967296 must be below 4294967296"),
        ({"index_lr": math.nan}, "index_lr nan must be a positive number"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"dtype": torch.float16}, "float16 is not supported"),
        ({"dtype": torch.bfloat16, "train_backbone": True}, "train_backbone needs float32"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        replace(SETTINGS, **wrong)


def test_texts_and_places_that_cannot_be(tmp_path: Path) -> None:
    source = write_dense_checkpoint(tmp_path / "dense", "llama")
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("")
    binary.write_bytes(b"abc\xff")
    with pytest.raises(ConversionError, match=r"no text in .*empty\.txt"):
        convert(source, [empty], tmp_path / "out", QUICK)
    with pytest.raises(ConversionError, match=r"binary\.txt is not UTF-8 text: invalid start byte at byte 3"):
        convert(source, [binary], tmp_path / "out", QUICK)
    with pytest.raises(ConversionError, match="dense exists and is not an empty directory"):
        convert(source, TEXTS, source, QUICK)
    with pytest.raises(NotADirectoryError, match=r"empty\.txt"):
        convert(source, TEXTS, empty / "out", replace(QUICK, warmup_steps=10**9))
    with pytest.raises(ConversionError, match=r"training diverged .* use a smaller index_lr"):
        convert(source, TEXTS, tmp_path / "out", replace(QUICK, continue_steps=0, index_lr=1e38))
    with pytest.raises(ConversionError, match="index_rotary_dim 32 must be even, below index_head_dim 32"):
        convert(source, TEXTS, tmp_path / "out", replace(QUICK, index_rotary=32))


def test_a_converted_model_is_never_dense(converted: Converted, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="attn_implementation 'sdpa': a converted model runs 'longsight' only"):
        AutoModelForCausalLM.from_pretrained(converted.out, attn_implementation="sdpa")
    with pytest.raises(OSError, match="nowhere"):
        longsight.hf.load(tmp_path / "nowhere")
    with pytest.raises(ConversionError, match="model; a converted one is longsight_llama"):
        longsight.hf.load(converted.source)
    model = longsight.hf.load(converted.out)
    with pytest.raises(UnsupportedError, match="attn_implementation 'eager'"):
        model.set_attn_implementation("eager")
    broken = tmp_path / "broken"
    converted.model.save_pretrained(broken)
    swapped(index_topk_blocks=None)(broken)
    with pytest.raises(ConversionError, match="the configuration lacks index_topk_blocks"):
        longsight.hf.load(broken)


def test_the_documented_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command and the lines of docs/transformers.md, on tiny files of the same names."""
    monkeypatch.chdir(tmp_path)
    write_dense_checkpoint(tmp_path / "path/to/Qwen3", "qwen3", max_position_embeddings=8192)
    (tmp_path / "book.txt").write_text("".join(path.read_text() for path in TEXTS)[:3000])
    text = (DOCS / "transformers.md").read_text()
    section = text[text.index("## Other models") :]
    command = re.search(r"```console\n\$ longsight (.*?)```", section, re.DOTALL)
    lines = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert command
    assert lines
    small = ["--block-size", "16", "--topk", "3", "--length", "64", "--steps", "2", "--continue-steps", "1"]
    assert main([*command[1].replace("\\\n", " ").split(), *small]) == 0
    shown = capsys.readouterr()
    assert "captured after" in shown.out
    assert "warmup 0: KL" in shown.err
    log = (tmp_path / "qwen3-sparse" / LOG).read_text().splitlines()
    assert log[0] == "stage,step,tokens,seconds,loss,kl_0,kl_1,captured_0,captured_1"
    assert [row.split(",")[0] for row in log[1:]] == ["before", "warmup", "warmup", "sparse", "after"]
    names: dict[str, Any] = {}
    exec(lines[1], names)
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_dense_checkpoint(tmp_path / "dense", "llama")
    missing = str(tmp_path / "no.txt")
    assert main(["convert", str(source), "--text", missing, "--out", str(tmp_path / "out")]) == 1
    assert "no.txt" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["convert", str(source), "--text", missing, "--out", "x", "--steps", "-1"])
    assert "'-1' is not a whole number, 0 or more" in capsys.readouterr().err


def test_pieces_hold_the_whole_text(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_byte_tokenizer(tmp_path)
    file = tmp_path / "text.txt"
    file.write_text("é" * 100)
    pieces = read_pieces(AutoTokenizer.from_pretrained(tmp_path), [file], 64)
    assert [len(piece) for piece in pieces] == [64, 64, 64, 8]
