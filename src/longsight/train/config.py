"""What one training run does: a TOML file as frozen values. docs/training.md lists the keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from longsight.model import ModelConfig
from longsight.ops.training.static import StaticPolicy
from longsight.train.schedule import Schedule

AttentionMode = Literal["dense", "warmup", "sparse", "frozen-sparse", "static"]
OptimizerKind = Literal["muon", "adamw"]
Precision = Literal["fp32", "bf16"]
Start = Literal["random", "previous-token", "copying", "spelling"]
KlKeys = Literal["chosen", "all"]
Sharding = Literal["ddp", "fsdp"]
ATTENTION_MODES: tuple[str, ...] = get_args(AttentionMode)
MATRIX_GROUPS = ("matrices", "index_matrices")  # what Muon can train: the 2-D weights of layers
INDEX_GROUPS = ("index_matrices", "index_norms")  # clipped apart from the rest
GROUPS = ("matrices", "embedding", "head", "norms", "index_matrices", "index_norms", "router")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """[model]: a new model, or `path`, a checkpoint to continue from, whose config may be given more positions.

    start: how a new model's weights begin (train/start.py). "previous-token" points layer 0's first key/value group one
    token back; "copying" points its heads one, two, ... tokens back and lets the output read the embeddings; "spelling"
    is that, with embeddings that begin alike where tokens spell one word.
    """

    config: ModelConfig
    path: Path | None = None
    start: Start = "random"


@dataclass(frozen=True, kw_only=True)
class TokenizerSource:
    """[tokenizer]: `path`, a tokenizer.json, or `source`, the generated task whose tokens have names of their own.

    chat_template: a chat_template.jinja that goes into the checkpoint.
    """

    path: Path | None = None
    source: str | None = None
    chat_template: Path | None = None


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One [[data]]: `tokens`, a directory that `longsight tokenize` wrote, or `task`, the name of a generated task.

    part: which documents of the token file, as shares of a fixed shuffle: (0, 0.99) and (0.99, 1) never meet.
    made_by: the command that makes the token file, for the error where it is missing.
    options: what the task's own keys say. each: tokens of one sample of the task, of which a row then holds as many as
    fit; 0 for one sample as long as the row.
    """

    name: str
    weight: float = 1.0
    tokens: Path | None = None
    part: tuple[float, float] = (0.0, 1.0)
    made_by: str | None = None
    task: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    each: int = 0


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """How one group of parameters is trained.

    muon: lr, decay, momentum (Nesterov), newton_schulz (iterations). adamw: lr, decay, betas, eps.
    decay is decoupled: weights shrink by lr * decay a step. lr 0 leaves the group as it is.
    """

    kind: OptimizerKind
    lr: float
    decay: float = 0.0
    momentum: float = 0.95
    newton_schulz: int = 5
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """groups: by name, all of GROUPS. clip and clip_index: largest gradient norm of the backbone and of the index
    branch, each over all its parameters. balance: step of the router's selection bias towards experts used too little.
    """

    groups: dict[str, GroupConfig]
    clip: float = 1.0
    clip_index: float = 1.0
    balance: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a stage is to reach, as means over its last `window` steps.

    captured: least captured attention mass (0..1) of every layer that measures it. accuracy: least share of targets
    hit. None: not asked for. early: the stage ends as soon as both are reached, instead of after its steps. required:
    a run whose stage ends without them stops there; otherwise it says so and goes on.
    """

    captured: float | None = None
    accuracy: float | None = None
    window: int = 20
    early: bool = False
    required: bool = True


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One [[stage]].

    steps     optimiser steps, which is what a stage lasts; minutes only bounds it from above (None: no bound)
    length    tokens of a packed row
    batch     packed rows of a step, over all processes
    micro     packed rows of one forward pass, at most (and one more where micro = 1 and processes do not divide batch)
    attention one mode per layer; layers without an index branch are dense
    static    the blocks of layers in mode "static"; None where no layer is
    topk_blocks  blocks that each row keeps in this stage
    kl        lambda, the weight of the index branch's KL beside the language loss
    kl_targets  share of the KL's weight that is kept for rows with a target
    kl_keys   what that share is measured over: the chosen blocks, or every key before a row
    skip      RoPE positions run up to this number, in random gaps; 0: no gaps
    sources   source name -> weight; the weights sum to 1
    optimizer rates and clips with this stage's own already in place
    """

    name: str
    steps: int
    minutes: float | None = None
    length: int
    batch: int
    micro: int
    attention: tuple[AttentionMode, ...]
    static: StaticPolicy | None = None
    topk_blocks: int
    schedule: Schedule = field(default_factory=Schedule)
    kl: float = 1.0
    kl_targets: float = 0.0
    kl_keys: KlKeys = "chosen"
    skip: int = 0
    sources: dict[str, float]
    optimizer: OptimizerConfig
    gate: Gate | None = None


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """[validation]: loss without training on `rows` packed rows of `length`, every `every` steps and after each stage.

    sources as in a stage; the rows are the same every time. The attention modes are those of the stage.
    """

    every: int
    rows: int
    length: int
    sources: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """[run]: out is the directory that everything is written to, relative to where the program runs.

    save_every, log_every: in steps; a checkpoint is also written at the end of each stage. keep: checkpoints to resume
    from that stay on the disk. backend: of longsight.ops.training; None: the fastest that runs. checkpointing:
    activations are computed again in the backward pass instead of kept. sharding: with several processes.
    """

    out: Path
    seed: int = 0
    precision: Precision = "fp32"
    save_every: int = 500
    log_every: int = 10
    keep: int = 2
    backend: str | None = None
    checkpointing: bool = False
    sharding: Sharding = "ddp"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole file."""

    model: ModelSource
    tokenizer: TokenizerSource
    data: tuple[SourceConfig, ...]
    optimizer: OptimizerConfig
    run: RunConfig
    stages: tuple[StageConfig, ...]
    validation: ValidationConfig | None = None

    @classmethod
    def from_file(cls, path: str | Path, assignments: Sequence[str] = ()) -> TrainConfig:
        """Read a TOML file; paths in it, except `run.out`, are relative to its directory. Raises ConfigError.

        assignments: `key=value` texts laid over the file, see train/overrides.py.
        """
        from longsight.train.config_toml import load

        return load(Path(path), assignments)
