"""The network in training: the served arithmetic, two losses that do not touch, checkpointing, routing, export."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
from longsight.model import CheckpointError, ModelConfig, load_model
from longsight.model.built_in import EMBEDDED_DIR
from longsight.model.checkpoint import Checkpoint
from longsight.ops import UnsupportedError, supports, training
from longsight.ops.backends import NAMES
from longsight.ops.training import Documents
from longsight.train import export, start
from longsight.train.batch import IGNORED, TrainBatch
from longsight.train.config import AttentionMode
from longsight.train.network import Network, Output
from longsight.train.totals import KL_ROWS, kl_rows, kl_weights
from paged_run import PagedRun
from tiny_checkpoint import CONFIG, write_tiny_checkpoint

TOLERANCE = 5e-5  # fp32 logits of rms about 1.4
LENGTHS = (117, 0, 1, 90)  # several times topk * block = 48, and documents of no and one row
INDEX = ("index_q_proj", "index_k_proj", "index_q_norm", "index_k_norm")
SPARSE: tuple[AttentionMode, ...] = ("dense", "sparse", "sparse")
WARMUP: tuple[AttentionMode, ...] = ("dense", "warmup", "warmup")


def batch_of(lengths: Sequence[int] = LENGTHS, *, vocab: int = 272, seed: int = 0, offset: int = 0) -> TrainBatch:
    """Random documents; every third target is left out."""
    documents = Documents.of_lengths(lengths)
    tokens = torch.randint(3, vocab, (documents.rows,), generator=torch.Generator().manual_seed(seed))
    targets = torch.full_like(tokens, IGNORED)
    for first, end in documents.bounds:
        targets[first : max(first, end - 1)] = tokens[first + 1 : end]
    targets[::3] = IGNORED
    return TrainBatch(tokens, targets, documents.positions.long() + offset, documents)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def network(tiny: Path) -> Network:
    return export.from_checkpoint(tiny, backend="reference")


def gradients(network: Network, value: Tensor) -> dict[str, Tensor | None]:
    network.zero_grad()
    value.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}


def is_index(name: str) -> bool:
    return any(f".{part}." in name for part in INDEX)


def record_blocks(network: Network) -> list[Tensor]:
    """What the network selects from now on, one entry per sparse layer and pass."""
    backend, seen = network.backend, []

    def select(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(backend.select_blocks(*args, **kwargs))
        return seen[-1]

    names = [name for name in dir(backend) if not name.startswith("_")]
    network.backend = SimpleNamespace(**{name: getattr(backend, name) for name in names} | {"select_blocks": select})  # type: ignore[assignment]
    return seen


@pytest.mark.parametrize("backend", [name for name in NAMES if supports(name) is None])
def test_training_serving_and_transformers_agree(backend: str, tmp_path: Path) -> None:
    """Same blocks, same logits: the network, its exported checkpoint served from pages, and the outside oracle."""
    model = oracle.build(oracle.text_config())
    tokens = torch.randint(3, 300, (201,), generator=torch.Generator().manual_seed(1))
    expected, choices = oracle.run(model, tokens)
    trains = backend if training.supports(backend) is None else "reference"
    network = export.from_checkpoint(oracle.save(model, tmp_path / "theirs"), backend=trains)
    seen = record_blocks(network)
    documents = Documents.of_lengths([201])
    batch = TrainBatch(tokens, tokens, documents.positions.long(), documents)
    logits = network.logits(batch, ["dense"] + 3 * ["sparse"])
    assert len(seen) == 3
    served = PagedRun(
        load_model(export.save(network, tmp_path / "ours", dtype=torch.float32), backend=backend), [tokens]
    )
    served.step(201)
    assert all(torch.equal(ids, choices.blocks[layer]) for layer, ids in enumerate(seen, 1))
    assert all(torch.equal(ids, served.blocks(layer)) for layer, ids in enumerate(seen, 1))
    assert float((logits - expected).abs().max()) <= TOLERANCE
    assert float((logits - served.logits()).abs().max()) <= TOLERANCE
    assert not torch.equal(seen[0][:, 0], seen[0][:, 1])  # groups choose for themselves
    dense = network.logits(batch, 4 * ["dense"])
    differs = (dense - logits).abs().amax(-1) > 1e-3
    assert not differs[:48].any()
    assert differs[48:].any()


def test_documents_do_not_see_each_other(network: Network) -> None:
    batch = batch_of()
    packed = network.logits(batch, SPARSE)
    for first, end in batch.documents.bounds:
        if end > first:
            documents = Documents.of_lengths([end - first])
            alone = TrainBatch(batch.tokens[first:end], batch.targets[first:end], documents.positions.long(), documents)
            assert float((network.logits(alone, SPARSE) - packed[first:end]).abs().max()) < 1e-5


def test_rope_positions_and_block_positions_are_apart(network: Network) -> None:
    """Shifting what RoPE turns by changes only rounding; a gap changes the numbers but not where blocks lie."""
    near, far = batch_of([150]), batch_of([150], offset=1000)
    seen = record_blocks(network)
    a, b = network.logits(near, SPARSE), network.logits(far, SPARSE)
    assert float((a - b).abs().max()) < 1e-3
    assert torch.equal(seen[0], seen[2])
    gap = dataclasses.replace(near, rope_positions=near.rope_positions + 5000 * (near.rope_positions >= 75))
    assert float((network.logits(gap, SPARSE) - a).abs().max()) > 1e-2
    assert int(seen[4].max()) == 149 // CONFIG.block_size


def test_rows_with_a_target_have_their_share_of_the_kl() -> None:
    batch = batch_of()
    learned = batch.targets != IGNORED
    rows, targets = len(batch.targets), int(learned.sum())
    assert 0 < targets < rows
    assert torch.equal(kl_weights(batch, rows, targets, 0.0), torch.full((rows,), 1 / rows))
    weights = kl_weights(batch, rows, targets, 0.7)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    torch.testing.assert_close(weights[~learned], torch.full((rows - targets,), 0.3 / rows))
    assert len(weights[learned].unique()) == 1
    empty = dataclasses.replace(batch, targets=torch.full_like(batch.targets, IGNORED))
    torch.testing.assert_close(kl_weights(empty, rows, 0, 0.7).sum(), torch.tensor(0.3))


def test_rows_compared_over_every_key(network: Network) -> None:
    """Where every block is chosen it is the same loss; where few are, another; and only the index branch feels it."""
    batch = batch_of()
    count, targets = len(batch.targets), int((batch.targets != IGNORED).sum())
    rows, weight = kl_rows(batch, targets, 0.7)
    assert torch.equal(rows, (batch.targets != IGNORED).nonzero()[:, 0])
    torch.testing.assert_close(weight.sum(), torch.tensor(0.7))
    chosen, rest = kl_weights(batch, count, targets, 0.7), 0.3 * kl_weights(batch, count, targets, 0.0)
    blocks, same = network.topk, []
    for topk in (150 // CONFIG.block_size + 1, blocks):
        network.topk = topk
        a = network(batch, SPARSE, chosen)
        b = network(batch, SPARSE, rest, kl_rows(batch, targets, 0.7))
        assert torch.equal(a.loss, b.loss)
        same.append(torch.allclose(a.kl, b.kl, rtol=1e-4))
        found = gradients(network, b.kl.sum())
        assert all(
            (gradient is not None and bool(gradient.any())) == is_index(name) for name, gradient in found.items()
        )
    assert same == [True, False]


def test_of_many_rows_with_a_target_some_are_compared_over_every_key() -> None:
    count = 3 * KL_ROWS + 7
    documents, tokens = Documents.of_lengths([count + 100]), torch.zeros(count + 100, dtype=torch.int64)
    batch = TrainBatch(tokens, torch.where(torch.arange(count + 100) < 100, IGNORED, tokens), tokens, documents)
    rows, weight = kl_rows(batch, 2 * count, 0.8)
    assert rows.shape == weight.shape == (KL_ROWS,)
    assert (int(rows[0]), int(rows.diff().min()), int(rows.diff().max())) == (100, 3, 4)
    assert int(rows[-1]) > count + 100 - 5
    torch.testing.assert_close(weight.sum(), torch.tensor(0.4))  # the other half is another batch's
    none = kl_rows(dataclasses.replace(batch, targets=torch.full_like(tokens, IGNORED)), 0, 0.8)
    assert none.rows.shape == none.weight.shape == (0,)


def test_a_stage_may_keep_another_number_of_blocks(network: Network) -> None:
    seen = record_blocks(network)
    network(batch_of(), SPARSE)
    network.topk = network.config.topk_blocks - 1
    network(batch_of(), SPARSE)
    assert [ids.shape[-1] for ids in seen] == 2 * [network.topk + 1] + 2 * [network.topk]


def test_output(network: Network) -> None:
    """Loss and hits over the targets alone; KL and captured mass where the modes have them."""
    batch = batch_of()
    out = network(batch, ("dense", "warmup", "sparse"))
    logits, rows = network.logits(batch, ("dense", "dense", "sparse")), batch.targets != IGNORED
    losses = torch.nn.functional.cross_entropy(logits[rows], batch.targets[rows], reduction="none")
    assert out.targets == int(rows.sum())
    assert torch.allclose(out.loss, losses.sum())
    assert int(out.correct) == int((logits[rows].argmax(-1) == batch.targets[rows]).sum())
    assert out.kl[0] == 0
    assert (out.kl[1:] > 0).all()
    assert 0 < float(out.captured[1]) < 1
    assert out.captured[::2].isnan().all()
    assert out.expert_load is not None
    assert out.expert_load.tolist()[0] == [0, 0, 0, 0]
    assert out.expert_load[1:].sum(1).tolist() == [2 * batch.tokens.shape[0]] * 2


def test_captured_mass_is_whole_where_nothing_is_left_out(network: Network) -> None:
    assert network(batch_of([48, 20]), WARMUP).captured[1:].tolist() == [1, 1]
    assert network(batch_of(), WARMUP, captured=False).captured.isnan().all()


def test_rows_weigh_in_the_kl_as_told(network: Network) -> None:
    batch, rows = batch_of(), sum(LENGTHS)
    even = network(batch, SPARSE).kl
    assert torch.allclose(network(batch, SPARSE, torch.full((rows,), 3.0 / rows)).kl, 3 * even)
    assert network(batch, WARMUP, torch.zeros(rows)).kl.tolist() == [0, 0, 0]


@pytest.mark.parametrize("modes", [SPARSE, WARMUP])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_kl_reaches_the_index_branch_alone(
    network: Network, modes: tuple[AttentionMode, ...], checkpointing: bool
) -> None:
    network.checkpointing = checkpointing
    grads = gradients(network, network(batch_of(), modes).kl.sum())
    for name, grad in grads.items():
        assert (grad is not None and bool(grad.any())) == is_index(name), name


@pytest.mark.parametrize("modes", [SPARSE, WARMUP, ("dense", "frozen-sparse", "frozen-sparse")])
def test_the_language_loss_reaches_everything_else(network: Network, modes: tuple[AttentionMode, ...]) -> None:
    grads = gradients(network, network(batch_of(), modes).loss)
    for name, grad in grads.items():
        assert (grad is not None and bool(grad.any())) != is_index(name), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("modes", [SPARSE, WARMUP, ("dense", "static", "frozen-sparse")])
def test_checkpointing_changes_no_bit(tiny: Path, modes: tuple[AttentionMode, ...], dtype: torch.dtype) -> None:
    """Losses and every gradient, the index branch's among them."""
    results = []
    for checkpointing in (False, True):
        network = export.from_checkpoint(tiny, backend="reference", checkpointing=checkpointing, dtype=dtype)
        out: Output = network(batch_of(), modes)
        results.append((out, gradients(network, out.loss / out.targets + out.kl.sum())))
    (plain, grads), (again, regrads) = results
    for field in ("loss", "kl", "expert_load", "correct"):
        assert torch.equal(getattr(plain, field), getattr(again, field))
    assert torch.equal(plain.captured.nan_to_num(), again.captured.nan_to_num())
    for name, grad in grads.items():
        other = regrads[name]
        assert (grad is None) == (other is None), name
        assert grad is None or other is None or torch.equal(grad, other), name
    if "sparse" in modes or "warmup" in modes:
        assert all(grads[n] is not None and bool(grads[n].any()) for n in grads if is_index(n))  # type: ignore[union-attr]


def test_checkpointing_keeps_less(tiny: Path) -> None:
    """Bytes saved for the backward pass."""
    kept = []
    for checkpointing in (False, True):
        network = export.from_checkpoint(tiny, backend="reference", checkpointing=checkpointing)
        saved: dict[int, int] = {}

        def pack(x: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = network(batch_of([400]), SPARSE)
        kept.append(sum(saved.values()))
        del out
    assert kept[1] < kept[0] / 3


def test_the_head_in_parts_is_the_head(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of()
    whole = network(batch, SPARSE)
    grads = gradients(network, whole.loss)
    monkeypatch.setattr("longsight.train.network.HEAD_ELEMENTS", 10 * CONFIG.vocab_size)
    parts = network(batch, SPARSE)
    assert torch.allclose(parts.loss, whole.loss)
    assert parts.correct == whole.correct
    for name, grad in gradients(network, parts.loss).items():
        assert grad is None or torch.allclose(grad, grads[name], atol=1e-4, rtol=1e-4), name


def test_no_target_is_no_error(network: Network) -> None:
    batch = batch_of()
    out = network(dataclasses.replace(batch, targets=torch.full_like(batch.targets, IGNORED)), SPARSE)
    assert (out.targets, out.loss.item(), int(out.correct)) == (0, 0.0, 0)
    grads = gradients(network, out.loss + out.kl.sum())
    assert bool(grads["layers.1.self_attn.index_k_proj.weight"].any())  # type: ignore[union-attr]


def test_bfloat16_keeps_masters_router_and_losses_in_fp32(tiny: Path) -> None:
    exact, rounded = (
        export.from_checkpoint(tiny, backend="reference", dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    seen: dict[str, torch.dtype] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, out: seen.update({name: out.dtype})

    for name in ("layers.1.self_attn.q_proj", "layers.1.input_layernorm", "layers.1.block_sparse_moe.gate"):
        rounded.get_submodule(name).register_forward_hook(note(name))
    a, b = exact(batch_of(), SPARSE), rounded(batch_of(), SPARSE)
    assert list(seen.values()) == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert b.loss.dtype == b.kl.dtype == torch.float32
    assert 0 < abs(a.loss.item() - b.loss.item()) < 0.1 * a.loss.item()
    grads = gradients(rounded, b.loss + b.kl.sum())
    assert {grad.dtype for grad in grads.values() if grad is not None} == {torch.float32}


def test_gradients_are_those_of_transformers(tmp_path: Path) -> None:
    """Of every weight, through chosen blocks, routed experts, norms and RoPE; the index branch has none."""
    model = oracle.build(oracle.text_config())
    network = export.from_checkpoint(oracle.save(model, tmp_path / "weights"), backend="reference")
    batch = batch_of([201], vocab=300)
    rows = batch.targets != IGNORED
    logits = model(batch.tokens[None], use_cache=False).logits[0]
    torch.nn.functional.cross_entropy(logits[rows], batch.targets[rows], reduction="sum").backward()
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    expected = dict(
        export.from_checkpoint(oracle.save(model, tmp_path / "gradients"), backend="reference").named_parameters()
    )
    for name, grad in gradients(network, network(batch, ["dense"] + 3 * ["sparse"]).loss).items():
        if is_index(name):
            assert grad is None
            assert not expected[name].any()
        else:
            assert grad is not None
            assert bool((grad - expected[name]).norm() <= 1e-4 * expected[name].norm()), name


def test_experts_without_rows_get_zeros(network: Network) -> None:
    moe = network.decoder_layers[1].block_sparse_moe
    moe.e_score_correction_bias.copy_(torch.tensor([9.0, -9.0, -9.0, 8.0]))
    out = network(batch_of(), SPARSE)
    assert out.expert_load is not None
    assert (out.expert_load[1] == 0).tolist() == [False, True, True, False]
    grads = gradients(network, out.loss)
    prefix = "layers.1.block_sparse_moe."
    assert not grads[f"{prefix}experts.1.w1.weight"].any()  # type: ignore[union-attr]
    assert grads[f"{prefix}experts.0.w1.weight"].any()  # type: ignore[union-attr]
    assert "e_score_correction_bias" not in "".join(grads)


def test_the_mixture_is_the_weighted_sum_of_the_chosen(network: Network) -> None:
    """The choice is of sigmoid + bias, the weights are of the sigmoids; the sum is that of every expert, masked."""
    moe = network.decoder_layers[1].block_sparse_moe
    x = torch.randn(50, CONFIG.hidden_size, generator=torch.Generator().manual_seed(0))
    ids, weights = moe.route(x)
    scores = (x @ moe.gate.weight.T).sigmoid()
    best = (scores + moe.e_score_correction_bias).topk(2).indices.sort(-1).values
    assert torch.equal(ids, best)
    expected = scores.gather(1, best) / scores.gather(1, best).sum(-1, keepdim=True) * CONFIG.routed_scaling_factor
    assert torch.allclose(weights, expected)
    dense = sum(
        (expert(x) * torch.where(ids == e, weights, 0.0).sum(-1, keepdim=True)) for e, expert in enumerate(moe.experts)
    )
    assert torch.allclose(moe(x)[0], dense + moe.shared_experts(x), atol=1e-5)


def test_an_unbalanced_router_becomes_balanced(network: Network) -> None:
    batch = batch_of([400])
    with torch.no_grad():
        for layer in network.decoder_layers[1:]:
            layer.block_sparse_moe.e_score_correction_bias.copy_(torch.tensor([0.3, 0.0, 0.0, -0.3]))
    worst = []
    for _ in range(60):
        with torch.no_grad():
            load = network(batch, ("dense", "dense", "dense")).expert_load
        network.balance(load, 0.02)
        worst.append(float((load[1:] / load[1:].float().mean(1, keepdim=True)).max()))
    assert worst[0] > 1.5
    assert max(worst[-5:]) < 1.2


def test_tied_embeddings(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, tie_word_embeddings=True)
    network = Network(config, "reference")
    start.random(network, 0)
    assert "head" not in network.parameter_groups()
    batch = batch_of()
    served = load_model(export.save(network, tmp_path, dtype=torch.float32), backend="reference")
    run = PagedRun(served, [batch.tokens[:117]])
    run.step(117)
    assert float((network.logits(batch, SPARSE)[:117] - run.logits()).abs().max()) < 1e-5


def test_every_parameter_has_its_group(network: Network) -> None:
    groups = network.parameter_groups()
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    assert set(groups) == {"matrices", "embedding", "head", "norms", "index_matrices", "index_norms", "router"}
    for name in ("matrices", "index_matrices"):
        assert all(p.ndim == 2 for p in groups[name].values())
    assert set(groups["index_norms"]) == {
        f"layers.{i}.self_attn.index_{part}_norm.weight" for i in (1, 2) for part in "qk"
    }
    assert set(groups["router"]) == {f"layers.{i}.block_sparse_moe.gate.weight" for i in (1, 2)}


def test_export_and_import(network: Network, tmp_path: Path) -> None:
    """bf16 but for the router; reading it back gives those weights; nothing half-written stays."""
    tokenizer = tmp_path / "some.json"
    shutil.copyfile(EMBEDDED_DIR / "tokenizer.json", tokenizer)
    out = export.save(network, tmp_path / "out", tokenizer)
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    ours = Checkpoint(out)
    fp32 = {name for name, dtype in ours.dtypes.items() if dtype == "F32"}
    assert fp32 == {name for name in ours.shapes if name.endswith(("gate.weight", "e_score_correction_bias"))}
    assert ModelConfig.from_file(out) == dataclasses.replace(CONFIG, dtype=torch.bfloat16)
    assert json.loads((out / "generation_config.json").read_text()) == {
        "bos_token_id": 256,
        "eos_token_id": [257],
        "pad_token_id": 0,
    }
    again = export.from_checkpoint(out, backend="reference").state_dict()
    for name, tensor in network.state_dict().items():
        kept = tensor if name.endswith(export.ROUTER) else tensor.bfloat16().float()
        assert torch.equal(again[name], kept), name
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        export.save(network, tokenizer)
    with pytest.raises(CheckpointError, match="is not a directory"):
        export.from_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("modes", "says"),
    [
        (("dense", "sparse"), "one mode per layer, 3, got 2"),
        (
            ("sparse", "sparse", "sparse"),
            "mode 'sparse' of layer 0, which has full attention: expected one of dense, static",
        ),
        (
            ("dense", "msa", "sparse"),
            "mode 'msa' of layer 1, which has sparse attention: expected one of dense, warmup",
        ),
    ],
)
def test_wrong_modes_are_refused(network: Network, modes: Any, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        network(batch_of(), modes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": torch.full((208,), 272)}, "token ids span 272..272; the vocabulary is 0..271"),
        ({"targets": torch.zeros(7, dtype=torch.int64)}, r"targets must be int64 \[208\]"),
        ({"rope_positions": torch.zeros(208)}, "rope_positions must be int64"),
    ],
)
def test_wrong_batches_are_refused(network: Network, change: dict[str, Tensor], says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        network(dataclasses.replace(batch_of(), **change), SPARSE)


def test_random_start_is_the_seed_s(network: Network) -> None:
    start.random(network, 7)
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    start.random(network, 7)
    assert all(torch.equal(first[name], tensor) for name, tensor in network.state_dict().items())
    start.random(network, 8)
    assert not torch.equal(first["norm.weight"] + 1, network.norm.weight)
    assert not torch.equal(first["embed_tokens.weight"], network.embed_tokens.weight)
    std = float(network.decoder_layers[0].self_attn.q_proj.weight.detach().std())
    assert std == pytest.approx(0.02, rel=0.05)


def test_previous_token_start_attends_one_back() -> None:
    """Layer 0's first group gives nearly all of its attention to the token before, from the start."""
    config = dataclasses.replace(
        CONFIG,
        hidden_size=128,
        head_dim=64,
        index_dim=64,
        rotary_dim=32,
        rope_theta=5e6,
        attention_kinds=3 * ("sparse",),
    )
    network = Network(config, "reference")
    start.previous_token(network, 0)
    seen: dict[str, Tensor] = {}
    attention = network.decoder_layers[0].self_attn
    attention.q_norm.register_forward_hook(lambda _m, _a, out: seen.update(q=out.detach()))
    attention.k_norm.register_forward_hook(lambda _m, _a, out: seen.update(k=out.detach()))
    network(batch_of([150]), 3 * ("dense",))
    scores = torch.einsum("thd,sd->hts", seen["q"][:, :2], seen["k"][:, 0]) / math.sqrt(64)
    scores = scores.masked_fill(torch.ones(150, 150).triu(1).bool(), -math.inf)
    back = scores.softmax(-1)[:, torch.arange(1, 150), torch.arange(149)]
    assert float(back.mean()) > 0.99
    assert float(back.min()) > 0.9


def test_spelling_start_has_words_begin_alike() -> None:
    """Tokens of one word are near, and the step from a word to the same after a blank is one for all words."""
    tokens = ["the", "\u0120the", "The", "\u0120THE", "mill", "\u0120mill", "iPod", "k", "K", "\u0120k", "(", "\u0120("]
    network = Network(dataclasses.replace(CONFIG, hidden_size=128), "reference")
    start.spelling(network, 0, tokens)
    vectors = network.lm_head.weight.detach()
    near = torch.nn.functional.cosine_similarity(vectors[None], vectors[:, None], dim=-1)
    at = {token: index for index, token in enumerate(tokens)}
    alike = [("the", "\u0120the"), ("the", "The"), ("\u0120the", "\u0120THE"), ("k", "\u0120k"), ("(", "\u0120(")]
    assert all(near[at[a], at[b]] > 0.6 for a, b in alike)
    assert all(near[at[a], at[b]] < 0.5 for a, b in (("the", "mill"), ("k", "K"), ("iPod", "the"), ("(", "k")))
    steps = [vectors[at[f"\u0120{word}"]] - vectors[at[word]] for word in ("the", "mill")]
    assert torch.allclose(steps[0], steps[1], atol=1e-6)
    assert near[len(tokens) :, : len(tokens)].abs().max() < 0.5  # ids that the tokenizer does not use are as they were


def test_what_torch_keeps_of_each_shape_is_bounded_unless_the_user_says_otherwise() -> None:
    code = (
        "import os; from longsight.ops.training import choose; choose('reference');"
        "print(os.environ['LRU_CACHE_CAPACITY'], os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    )
    names = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    bare = {name: value for name, value in os.environ.items() if name not in names}
    for given, expected in ({}, "64 64"), ({"LRU_CACHE_CAPACITY": "9"}, "9 64"):
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, check=True, capture_output=True, text=True, timeout=120, env=bare | given)
        assert done.stdout.split() == expected.split()
