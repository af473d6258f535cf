"""Muon and AdamW over a network's groups: which rule moves what, clips apart, exact resume."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from longsight.model import ConfigError
from longsight.ops.training import Documents
from longsight.train import start
from longsight.train.batch import IGNORED, TrainBatch
from longsight.train.config import GROUPS, MATRIX_GROUPS, GroupConfig, OptimizerConfig
from longsight.train.muon import Muon
from longsight.train.network import Network
from longsight.train.optimizers import Optimizers
from tiny_checkpoint import CONFIG

MODES = ("dense", "sparse", "warmup")


def configuration(**changes: GroupConfig) -> OptimizerConfig:
    muon, adamw = GroupConfig(kind="muon", lr=0.02), GroupConfig(kind="adamw", lr=2e-3)
    groups = {name: muon if name in MATRIX_GROUPS else adamw for name in GROUPS}
    return OptimizerConfig(groups={**groups, **changes})


def network(seed: int = 0) -> Network:
    made = Network(CONFIG, "reference")
    start.random(made, seed, None)
    return made


def batch(step: int) -> TrainBatch:
    """A text of period 7, so that there is something to learn."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(3, 40, (7,), generator=generator).repeat(16)
    documents = Documents.of_lengths([tokens.shape[0]])
    targets = torch.cat((tokens[1:], torch.tensor([IGNORED])))
    return TrainBatch(tokens, targets, documents.positions.long(), documents)


def train(model: Network, optimizers: Optimizers, steps: range) -> list[float]:
    losses = []
    for step in steps:
        out = model(batch(step), MODES)
        optimizers.zero_grad()
        (out.loss / out.targets + out.kl.sum()).backward()
        optimizers.step()
        losses.append(out.loss.item() / out.targets)
    return losses


def parameters(model: Network) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_it_learns() -> None:
    model = network()
    losses = train(model, Optimizers(model.parameter_groups(), configuration()), range(40))
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_muon_moves_matrices_by_orthogonal_steps() -> None:
    """Every singular value of a step is about lr * sqrt(max(1, rows / columns)), whatever the gradient's size."""
    model = network()
    before = parameters(model)
    train(model, Optimizers(model.parameter_groups(), configuration()), range(1))
    groups = model.parameter_groups()
    seen = 0
    for name, parameter in {**groups["matrices"], **groups["index_matrices"]}.items():
        rows, columns = parameter.shape
        assert parameter.grad is not None
        values = torch.linalg.svdvals((before[name] - parameter).detach())
        rank = int((torch.linalg.svdvals(parameter.grad) > 1e-2 * parameter.grad.norm()).sum())
        assert rank > 0, name
        kept = values[:rank] / (0.02 * math.sqrt(max(1, rows / columns)))
        assert 0.5 < float(kept.min()) <= float(kept.max()) < 1.4, name
        seen += 1
    assert seen == len(groups["matrices"]) + 4


def test_adamw_moves_the_rest_by_its_rate() -> None:
    model = network()
    before = parameters(model)
    train(model, Optimizers(model.parameter_groups(), configuration()), range(1))
    groups = model.parameter_groups()
    for group in ("embedding", "head", "norms", "index_norms", "router"):
        for name, parameter in groups[group].items():
            moved = (before[name] - parameter).detach().abs()
            # The first step of Adam is the rate times the gradient's sign.
            assert float(moved.max()) == pytest.approx(2e-3, rel=1e-2), name


def test_rates_and_decay_are_each_group_s_own() -> None:
    """Rate 0 leaves a group as it is; decay shrinks weights by rate * decay beside the step."""
    frozen = GroupConfig(kind="adamw", lr=0.0, decay=0.5)
    results = []
    for decay in (0.0, 0.5):
        model = network()
        head = GroupConfig(kind="adamw", lr=1e-2, decay=decay)
        train(model, Optimizers(model.parameter_groups(), configuration(embedding=frozen, head=head)), range(1))
        results.append(parameters(model))
    first = parameters(network())
    assert torch.equal(results[0]["embed_tokens.weight"], first["embed_tokens.weight"])
    shrunk = results[0]["lm_head.weight"] - results[1]["lm_head.weight"]
    assert torch.allclose(shrunk, 1e-2 * 0.5 * first["lm_head.weight"], atol=1e-6)


def test_configure_changes_rates_and_keeps_momentum() -> None:
    model, config = network(), configuration()
    optimizers = Optimizers(model.parameter_groups(), config)
    train(model, optimizers, range(2))
    before = parameters(model)
    optimizers.configure(config, factor=0.0)
    train(model, optimizers, range(2, 3))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    optimizers.configure(config, factor=0.5)
    for optimizer in optimizers.state_dict().values():
        assert {group["lr"] for group in optimizer["param_groups"]} <= {0.01, 1e-3}
        assert len(optimizer["state"]) > 0


def test_backbone_and_index_are_clipped_apart() -> None:
    model = network()
    optimizers = Optimizers(model.parameter_groups(), replace(configuration(), clip=0.25, clip_index=1e-3))
    out = model(batch(0), MODES)
    (1e4 * out.loss + out.kl.sum()).backward()
    backbone, index = optimizers.step()
    groups = model.parameter_groups()
    left = {
        name: torch.cat([p.grad.flatten() for p in group.values() if p.grad is not None]).norm()
        for name, group in groups.items()
    }
    ours = torch.stack([left.pop("index_matrices"), left.pop("index_norms")]).norm()
    assert float(ours) == pytest.approx(1e-3, rel=1e-3)
    assert float(torch.stack(list(left.values())).norm()) == pytest.approx(0.25, rel=1e-3)
    assert float(backbone) > 1e4
    assert 1e-3 < float(index) < 1e2


def test_without_gradient_nothing_moves() -> None:
    """An idle index branch keeps its weights, whatever decay and momentum say."""
    model = network()
    decaying = GroupConfig(kind="muon", lr=0.02, decay=0.1)
    optimizers = Optimizers(model.parameter_groups(), configuration(index_matrices=decaying))
    train(model, optimizers, range(1))
    before = parameters(model)
    out = model(batch(1), ("dense", "dense", "frozen-sparse"))
    optimizers.zero_grad()
    out.loss.backward()
    _, index = optimizers.step()
    assert float(index) == 0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (".index_" in name), name


def test_resume_is_exact() -> None:
    """Through a file, as a stopped run would; with the rates in force, not those of the file."""
    straight = network()
    losses = train(straight, Optimizers(straight.parameter_groups(), configuration()), range(6))
    first = network()
    optimizers = Optimizers(first.parameter_groups(), configuration())
    train(first, optimizers, range(3))
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizers": optimizers.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = network(seed=9)
    second.load_state_dict(saved["model"])
    resumed = Optimizers(second.parameter_groups(), configuration())
    resumed.load_state_dict(saved["optimizers"])
    assert train(second, resumed, range(3, 6)) == losses[3:]
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name)), name


def test_muon_is_torch_s_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 to the bit of a rounding, in fp32 within what bf16 loses; many matrices of several shapes, some tall."""
    shapes = 3 * [(48, 32)] + 2 * [(32, 48)] + 4 * [(64, 64)] + [(5, 40)]
    monkeypatch.setattr("longsight.train.muon.BATCH_ELEMENTS", 3 * 48 * 32)
    for has_bf16, tolerance in ((True, 2e-3), (False, 0.05)):
        monkeypatch.setattr("longsight.train.muon._cpu_has_bf16", lambda has=has_bf16: has)
        results = []
        for kind in (Muon, torch.optim.Muon):
            generator = torch.Generator().manual_seed(0)
            matrices = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
            optimizer = kind(matrices, lr=0.02, weight_decay=0.1)
            for _ in range(4):
                for matrix in matrices[1:]:
                    matrix.grad = torch.randn(matrix.shape, generator=generator)
                optimizer.step()
            results.append([matrix.detach() for matrix in matrices])
        assert torch.equal(results[0][0], results[1][0])
        for ours, theirs in zip(*results, strict=True):
            assert float((ours - theirs).norm()) <= tolerance * 4 * 0.02 * max(ours.shape) ** 0.5


def test_weights_cut_among_processes_train_alike(tmp_path: Path) -> None:
    """Through FSDP2's tensors, in a group of one process, stopped and resumed from whole tensors."""
    alone, cut = network(), network()
    losses = train(alone, Optimizers(alone.parameter_groups(), configuration()), range(3))
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meeting", world_size=1, rank=0)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for module in (*cut.layers, cut):
            fully_shard(module, mesh=mesh)
        first = Optimizers(cut.parameter_groups(), configuration())
        cut_losses = train(cut, first, range(2))
        resumed = Optimizers(cut.parameter_groups(), configuration())
        resumed.load_state_dict(whole(first.state_dict()))
        cut_losses += train(cut, resumed, range(2, 3))
        assert cut_losses == pytest.approx(losses, rel=2e-3)
        for name, parameter in whole(dict(cut.named_parameters())).items():
            assert torch.allclose(parameter, alone.get_parameter(name), atol=5e-3), name
    finally:
        torch.distributed.destroy_process_group()


def whole(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, DTensor):
        return tree.full_tensor().detach()
    return tree


def other_layers() -> Network:
    return Network(
        replace(CONFIG, num_layers=2, attention_kinds=("full", "sparse"), mlp_kinds=("dense", "moe")), "reference"
    )


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (
            lambda: Optimizers(network().parameter_groups(), configuration(norms=GroupConfig(kind="muon", lr=0.02))),
            "optimizer.norms: Muon trains matrices only, and layers.0.input_layernorm.weight is none",
        ),
        (
            lambda: Optimizers(network().parameter_groups(), OptimizerConfig(groups={})),
            "no optimiser for parameter group 'embedding'",
        ),
        (
            lambda: Optimizers(network().parameter_groups(), configuration()).load_state_dict(
                Optimizers(other_layers().parameter_groups(), configuration()).state_dict()
            ),
            "the saved muon state is of other parameters than this run's",
        ),
        (
            lambda: Optimizers(network().parameter_groups(), configuration()).load_state_dict({}),
            r"the saved optimisers are \[\]; this run has \['adamw', 'muon'\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(act: Callable[[], None], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        act()
