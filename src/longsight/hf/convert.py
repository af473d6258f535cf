"""Gives an existing grouped-query model an index branch, and trains it: dense warm-up, then sparse.

Source: MiniMax Sparse Attention, arXiv:2606.13392, section on training. In warm-up the model is frozen and dense, and
the branch learns where its attention goes; after it attention reads only the chosen blocks.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer

from longsight.hf.backends import training_for
from longsight.hf.converted import FAMILIES, ConversionError, Family, check, from_pretrained, head_dim, read_config
from longsight.hf.packing import Packer, Step, read_pieces
from longsight.hf.training import Mode, Trace
from longsight.train.batch import IGNORED, TrainBatch
from longsight.train.config import GroupConfig, OptimizerConfig
from longsight.train.optimizers import Optimizers
from longsight.train.schedule import Schedule

LOG = "conversion.csv"
HEAD_ROWS = 1024  # rows whose logits exist at a time


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is converted.

    block_size, topk, local_blocks: what each query reads, k * B tokens. index_dim, index_rotary: channels of the index
    heads and how many of them RoPE turns; None: the main heads' size, and half the index heads' own, if the main ones
    have that many.
    length, batch: tokens of a document at most, and how many such lengths a step reads.
    warmup_steps, continue_steps: of the dense and of the sparse stage. train_backbone: let the sparse stage train the
    model itself too, by the loss of the next token.
    index_lr: of the branch's matrices (Muon); its norms get 0.15 of it (AdamW). backbone_lr: AdamW.
    measure_every: steps between measurements of the captured mass. No dropout applies, whatever the model says.
    """

    block_size: int = 128
    topk: int = 16
    local_blocks: int = 1
    index_dim: int | None = None
    index_rotary: int | None = None
    length: int = 4096
    batch: int = 1
    warmup_steps: int = 200
    continue_steps: int = 100
    train_backbone: bool = False
    index_lr: float = 0.02
    backbone_lr: float = 1e-5
    measure_every: int = 10
    seed: int = 0
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("warmup_steps", "continue_steps", "seed", "index_rotary") else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise ConversionError(f"{field.name} {value} must be at least {least}")
            if isinstance(value, float) and not 0 < value < math.inf:
                raise ConversionError(f"{field.name} {value} must be a positive number")
        if self.seed >= 1 << 32:
            raise ConversionError(f"seed {self.seed} must be below {1 << 32}")
        if self.length <= self.topk * self.block_size:
            raise ConversionError(
                f"length {self.length} leaves nothing to choose: {self.topk} blocks of {self.block_size} tokens hold "
                f"{self.topk * self.block_size}; use a longer length, or smaller or fewer blocks"
            )
        if self.dtype not in (torch.float32, torch.bfloat16):
            raise ConversionError(f"dtype {self.dtype} is not supported; use torch.float32 or torch.bfloat16")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ConversionError(f"device {self.device!r} cannot be used: {str(error).splitlines()[0]}") from None
        if self.train_backbone and self.dtype != torch.float32:
            raise ConversionError(f"train_backbone needs float32: small steps would be lost in {self.dtype}")


@dataclass(frozen=True)
class Result:
    """before, after: the probe batch ahead of training and at the end; steps: every step between.

    held_out: whether the probe is text that no step trained on.
    """

    before: Step
    after: Step
    steps: tuple[Step, ...]
    held_out: bool


def convert(
    source: str | Path,
    texts: Sequence[Path],
    out: Path,
    settings: Settings,
    progress: Callable[[Step], None] | None = None,
) -> Result:
    """Convert the model at `source` and write it, its tokenizer and the log to `out`, a new or empty directory.

    progress sees every step. Raises ConversionError for models, texts and settings that do not fit.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConversionError(f"{out} exists and is not an empty directory")
    torch.manual_seed(settings.seed)
    family, config = target(source, settings)
    tokenizer = read_tokenizer(source)
    pieces = read_pieces(tokenizer, texts, settings.length)
    model = from_pretrained(family, source, config, settings.dtype, new_branch=True).to(settings.device)
    out.mkdir(parents=True, exist_ok=True)  # before the work: a place that cannot be written to must not cost it
    result = train(model, Packer(pieces, settings.length * settings.batch, settings.seed), settings, progress)
    model.cpu().save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_log(out / LOG, result)
    return result


def read_tokenizer(source: str | Path) -> Any:
    """The model's tokenizer, with a padding token: the end token where it has none of its own."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (ValueError, OSError) as error:
        raise ConversionError(f"{source} has no tokenizer that transformers can load: {error}") from None
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def target(source: str | Path, settings: Settings) -> tuple[Family, Any]:
    """What the model at `source` becomes: the family and its configuration. Raises ConversionError if it cannot."""
    original = read_config(source)
    if any(isinstance(original, family.config) for family in FAMILIES.values()):
        raise ConversionError(f"{source}: a {original.model_type} model has its index branch already")
    family = FAMILIES.get(original.model_type)
    if family is None:
        raise ConversionError(
            f"{source}: model_type {original.model_type!r} has no grouped-query attention that longsight knows; it "
            f"converts {', '.join(FAMILIES)}"
        )
    values = {key: value for key, value in original.to_dict().items() if key not in ("model_type", "architectures")}
    main = head_dim(original)
    dim = settings.index_dim or main
    rotary = min(dim // 4 * 2, main) if settings.index_rotary is None else settings.index_rotary
    config = family.config(
        **values,
        index_head_dim=dim,
        index_rotary_dim=rotary,
        index_block_size=settings.block_size,
        index_topk_blocks=settings.topk,
        index_local_blocks=settings.local_blocks,
    )
    check(config)
    return family, config


def train(model: Any, data: Packer, settings: Settings, progress: Callable[[Step], None] | None = None) -> Result:
    """Train the index branches of a model in place, and the model too if the settings say so."""
    for parameter in model.index_parameters().values():
        parameter.data = parameter.data.float()
    say = progress or (lambda _step: None)
    before = probe(model, data, "before")
    say(before)
    steps: list[Step] = []
    for stage in ("warmup", "sparse"):
        steps += _stage(model, stage, data, settings, len(steps), say)
    after = probe(model, data, "after")
    _require_finite(after)
    say(after)
    for parameter in model.index_parameters().values():
        parameter.data = parameter.data.to(settings.dtype)
        parameter.grad = None
    return Result(before, after, tuple(steps), data.held_out)


@torch.no_grad()
def probe(model: Any, data: Packer, name: str) -> Step:
    """KL and captured mass of the held-out batch, under dense attention."""
    begin = time.perf_counter()
    batch = data.probe
    trace = Trace("warmup", batch.documents, training_for(model.device), measure=True)
    hidden(model, batch, trace)
    return _record(name, 0, 1, trace, None, batch, begin)


def hidden(model: Any, batch: TrainBatch, trace: Trace) -> Tensor:
    """The last hidden states [1, T, C] of packed documents; what the layers find goes into `trace`."""
    device = model.device
    out: Tensor = model.model(
        batch.tokens[None].to(device), position_ids=batch.rope_positions[None].to(device), use_cache=False, trace=trace
    ).last_hidden_state
    return out


def next_token_loss(model: Any, states: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy over rows with a target; logits exist for HEAD_ROWS rows at a time, in backward too."""
    wanted = (targets != IGNORED).nonzero()[:, 0]
    rows, goals = states[0][wanted.to(states.device)], targets[wanted].to(states.device)
    total = states.new_zeros((), dtype=torch.float32)
    for part, goal in zip(rows.split(HEAD_ROWS), goals.split(HEAD_ROWS), strict=True):
        total = total + checkpoint(_summed_loss, model.lm_head, part, goal, use_reentrant=False)
    return total / max(len(goals), 1)


def _summed_loss(head: Any, rows: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(rows).float(), targets, reduction="sum")


def _stage(
    model: Any, stage: Mode, data: Packer, settings: Settings, done: int, say: Callable[[Step], None]
) -> list[Step]:
    steps = settings.warmup_steps if stage == "warmup" else settings.continue_steps
    backbone = stage == "sparse" and settings.train_backbone
    if not steps:
        return []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(backbone or ".indexer." in name)
    optimizers, config = _optimizers(model, settings, backbone, first=stage == "warmup")
    schedule = Schedule("linear", warmup=min(20, steps // 10))
    ops = training_for(model.device)
    made: list[Step] = []
    for step in range(steps):
        begin = time.perf_counter()
        batch = data.batch(done + step)
        trace = Trace(stage, batch.documents, ops, measure=step % settings.measure_every == 0 or step == steps - 1)
        loss = None
        states = hidden(model, batch, trace)
        objective = torch.stack(trace.kl).sum()
        if stage == "sparse":
            with torch.set_grad_enabled(backbone):
                loss = next_token_loss(model, states, batch.targets)
            objective = objective + loss
        optimizers.zero_grad()
        objective.backward()
        optimizers.configure(config, schedule.factor(step, steps))
        optimizers.step()
        made.append(_record(stage, step, steps, trace, loss, batch, begin))
        _require_finite(made[-1])
        say(made[-1])
    for parameter in model.parameters():
        parameter.grad = None
    return made


def _require_finite(step: Step) -> None:
    if not math.isfinite(sum(step.kl) + (step.loss or 0.0)):
        raise ConversionError(
            f"training diverged (step {step.step} of {step.stage}): use a smaller index_lr, or backbone_lr if the "
            "model itself was trained"
        )


def _optimizers(model: Any, settings: Settings, backbone: bool, *, first: bool) -> tuple[Optimizers, OptimizerConfig]:
    index = model.index_parameters()
    groups = {
        "index_matrices": {name: p for name, p in index.items() if p.ndim == 2},
        "index_norms": {name: p for name, p in index.items() if p.ndim == 1},
    }
    rate = settings.index_lr if first else 0.5 * settings.index_lr
    configured = {
        "index_matrices": GroupConfig(kind="muon", lr=rate),
        "index_norms": GroupConfig(kind="adamw", lr=0.15 * rate),
    }
    if backbone:
        groups["backbone"] = {name: p for name, p in model.named_parameters() if name not in index}
        configured["backbone"] = GroupConfig(kind="adamw", lr=settings.backbone_lr)
    config = OptimizerConfig(groups=configured)
    return Optimizers(groups, config), config


def _record(
    stage: str, step: int, steps: int, trace: Trace, loss: Tensor | None, batch: TrainBatch, begin: float
) -> Step:
    return Step(
        stage,
        step,
        steps,
        tuple(kl.item() for kl in trace.kl),
        tuple(trace.captured) if trace.measure else None,
        None if loss is None else loss.item(),
        len(batch.tokens),
        time.perf_counter() - begin,
    )


def write_log(path: Path, result: Result) -> None:
    """Every step as a line of CSV: KL and, where measured, captured mass of each layer."""
    layers = range(len(result.before.kl))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "stage",
                "step",
                "tokens",
                "seconds",
                "loss",
                *(f"kl_{i}" for i in layers),
                *(f"captured_{i}" for i in layers),
            ]
        )
        for step in (result.before, *result.steps, result.after):
            captured = step.captured or ("",) * len(layers)
            loss = "" if step.loss is None else step.loss
            writer.writerow([step.stage, step.step, step.tokens, f"{step.seconds:.4f}", loss, *step.kl, *captured])
