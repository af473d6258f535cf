"""A training TOML file -> TrainConfig."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from longsight.model import ConfigError, ModelConfig
from longsight.model.config_json import DTYPES, MAX_LAYERS
from longsight.ops.training.static import StaticPolicy
from longsight.train import config as c
from longsight.train import overrides
from longsight.train.schedule import KINDS, Schedule
from longsight.train.table import Table

MAX_ROWS = 2**20  # packed rows of a step
MAX_LENGTH = 2**24  # tokens of a packed row, and RoPE positions
SECTIONS = ("model", "tokenizer", "data", "optimizer", "run", "stage", "validation")

# The rates of the first stage of examples/recall.toml.
DEFAULT_GROUPS = {
    "matrices": c.GroupConfig(kind="muon", lr=0.02),
    "embedding": c.GroupConfig(kind="adamw", lr=2e-3),
    "head": c.GroupConfig(kind="adamw", lr=2e-3),
    "norms": c.GroupConfig(kind="adamw", lr=2e-3),
    "index_matrices": c.GroupConfig(kind="muon", lr=0.02),
    "index_norms": c.GroupConfig(kind="adamw", lr=3e-3),
    "router": c.GroupConfig(kind="adamw", lr=2e-3),
}


def load(path: Path, assignments: Sequence[str] = ()) -> c.TrainConfig:
    """Read a file, with `key=value` assignments laid over it.

    Raises ConfigError, naming the file, the key, its value and what is accepted.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    overrides.apply(data, assignments)
    try:
        return from_dict(data, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def from_dict(data: Mapping[str, Any], directory: Path) -> c.TrainConfig:
    """From parsed TOML whose relative paths start at `directory`. Raises ConfigError."""
    top = Table(data)
    model = _model(top.table("model"), directory)
    sources = _sources(top.tables("data"), directory)
    optimizer = _optimizer(top.table("optimizer"))
    names = [source.name for source in sources]
    stages = tuple(_stage(table, model.config, sources, optimizer) for table in top.tables("stage"))
    _unique("stage", [stage.name for stage in stages])
    if not stages:
        raise ConfigError("there is no [[stage]]; expected at least one")
    config = c.TrainConfig(
        model=model,
        tokenizer=_tokenizer(top.table("tokenizer"), directory, names),
        data=sources,
        optimizer=optimizer,
        run=_run(top.table("run")),
        stages=stages,
        validation=_validation(top.table("validation"), model.config, sources) if "validation" in top else None,
    )
    top.finish(SECTIONS)
    if model.start == "spelling" and config.tokenizer.path is None:
        raise ConfigError('model.start is "spelling", which reads tokens: [tokenizer] must have a path')
    return config


def _model(table: Table, directory: Path) -> c.ModelSource:
    if "path" in table:
        path = directory / table.text("path")
        read = ModelConfig.from_file(path)
        positions = table.integer("max_position_embeddings", read.max_position_embeddings, least=1, most=MAX_LENGTH)
        table.finish(("path", "max_position_embeddings"))
        return c.ModelSource(config=dataclasses.replace(read, max_position_embeddings=positions), path=path)
    start = table.choice("start", get_args(c.Start), "random")
    fields = {field.name: field for field in dataclasses.fields(ModelConfig)}
    layers = table.integer("num_layers", least=1, most=MAX_LAYERS)
    values: dict[str, Any] = {
        "attention_kinds": _per_layer(table, "attention_kinds", ("full", "sparse"), layers, "sparse"),
        "mlp_kinds": _per_layer(table, "mlp_kinds", ("dense", "moe"), layers, "dense"),
        "dtype": DTYPES[table.choice("dtype", tuple(DTYPES), "bfloat16")],
        "eos_token_ids": _token_ids(table, "eos_token_ids"),
    }
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING
        if name in values or name == "sparse_disabled" or (name not in table and not required):
            continue
        if field.type == "bool":
            values[name] = table.boolean(name, False)
        elif field.type == "float":
            values[name] = table.number(name, least=-1e30)
        else:
            values[name] = table.integer(name, most=2**31 - 1)
    table.finish(sorted({"path", "start", *fields} - {"sparse_disabled"}))
    try:
        return c.ModelSource(config=ModelConfig(**values), start=cast(c.Start, start))
    except ConfigError as error:
        raise ConfigError(f"model: {error}") from error


def _per_layer(table: Table, key: str, accepted: Collection[str], layers: int, default: str = "") -> tuple[str, ...]:
    """One entry per layer; a single text stands for all layers."""
    value = table.get(key)
    values = [value or default] * layers if value is None or isinstance(value, str) else value
    good = isinstance(values, list) and len(values) == layers
    if not good or not all(isinstance(item, str) and item in accepted for item in values):
        raise table.fail(key, f"one of {', '.join(accepted)}, or a list of {layers} of them (num_layers)")
    return tuple(values)


def _token_ids(table: Table, key: str) -> tuple[int, ...]:
    value = table.get(key)
    values = [] if value is None else value
    if not isinstance(values, list) or not all(type(item) is int and item >= 0 for item in values):
        raise table.fail(key, "a list of token ids")
    return tuple(values)


def _tokenizer(table: Table, directory: Path, sources: list[str]) -> c.TokenizerSource:
    path = directory / table.text("path") if "path" in table else None
    source = table.choice("source", sources) if "source" in table else None
    if path is not None and source is not None:
        raise table.fail("source", "no source beside a path")
    template = directory / table.text("chat_template") if "chat_template" in table else None
    table.finish(("path", "source", "chat_template"))
    return c.TokenizerSource(path=path, source=source, chat_template=template)


def _sources(tables: list[Table], directory: Path) -> tuple[c.SourceConfig, ...]:
    sources = tuple(_source(table, directory) for table in tables)
    _unique("data", [source.name for source in sources])
    if not sources:
        raise ConfigError("there is no [[data]]; expected at least one")
    return sources


def _source(table: Table, directory: Path) -> c.SourceConfig:
    name = table.text("name")
    weight = table.number("weight", 1.0, above=True)
    if ("tokens" in table) == ("task" in table):
        raise ConfigError(
            f"{table.where[:-1]} ({name}) must have either tokens (a directory of `longsight tokenize`) or task"
        )
    if "task" in table:
        task = table.text("task")
        each = table.integer("each", 0)
        return c.SourceConfig(name=name, weight=weight, task=task, options=table.rest(), each=each)
    tokens = directory / table.text("tokens")
    part = table.numbers("part", (0.0, 1.0), most=1.0)
    made_by = table.text("made_by") if "made_by" in table else None
    table.finish(("name", "weight", "tokens", "part", "made_by", "task"))
    return c.SourceConfig(name=name, weight=weight, tokens=tokens, part=part, made_by=made_by)


def _optimizer(table: Table, base: c.OptimizerConfig | None = None) -> c.OptimizerConfig:
    """With `base`, a stage's own rates, decays and clips over the run's."""
    start = base or c.OptimizerConfig(groups=DEFAULT_GROUPS)
    read = _group if base is None else _group_override
    config = c.OptimizerConfig(
        groups={name: read(table.table(name), name, start.groups[name]) for name in c.GROUPS},
        clip=table.number("clip", start.clip, above=True),
        clip_index=table.number("clip_index", start.clip_index, above=True),
        balance=table.number("balance", start.balance),
    )
    table.finish((*c.GROUPS, "clip", "clip_index", "balance"))
    return config


def _group(table: Table, name: str, default: c.GroupConfig) -> c.GroupConfig:
    kinds = get_args(c.OptimizerKind) if name in c.MATRIX_GROUPS else ("adamw",)
    kind = cast(c.OptimizerKind, table.choice("kind", kinds, default.kind))
    group = c.GroupConfig(
        kind=kind,
        lr=table.number("lr", default.lr if kind == default.kind else 2e-3),
        decay=table.number("decay", default.decay),
    )
    if kind == "muon":
        group = dataclasses.replace(
            group,
            momentum=table.number("momentum", default.momentum, most=0.9999),
            newton_schulz=table.integer("newton_schulz", default.newton_schulz, least=1, most=20),
        )
        table.finish(("kind", "lr", "decay", "momentum", "newton_schulz"))
    else:
        betas = table.numbers("betas", default.betas, most=0.99999)
        group = dataclasses.replace(group, betas=betas, eps=table.number("eps", default.eps, above=True))
        table.finish(("kind", "lr", "decay", "betas", "eps"))
    return group


def _group_override(table: Table, name: str, base: c.GroupConfig) -> c.GroupConfig:
    group = dataclasses.replace(base, lr=table.number("lr", base.lr), decay=table.number("decay", base.decay))
    table.finish(("lr", "decay"))
    return group


def _run(table: Table) -> c.RunConfig:
    config = c.RunConfig(
        out=Path(table.text("out")),
        seed=table.integer("seed", 0, most=2**63 - 1),
        precision=cast(c.Precision, table.choice("precision", get_args(c.Precision), "fp32")),
        save_every=table.integer("save_every", 500, least=1),
        log_every=table.integer("log_every", 10, least=1),
        keep=table.integer("keep", 2, least=1),
        backend=table.text("backend") if "backend" in table else None,
        checkpointing=table.boolean("checkpointing", False),
        sharding=cast(c.Sharding, table.choice("sharding", get_args(c.Sharding), "ddp")),
    )
    table.finish([field.name for field in dataclasses.fields(c.RunConfig)])
    return config


def _stage(
    table: Table, model: ModelConfig, sources: tuple[c.SourceConfig, ...], optimizer: c.OptimizerConfig
) -> c.StageConfig:
    name = table.text("name")
    steps = table.integer("steps", least=1)
    length = table.integer("length", least=2, most=min(MAX_LENGTH, model.max_position_embeddings))
    batch = table.integer("batch", least=1, most=MAX_ROWS)
    schedule = Schedule(
        kind=cast(Any, table.choice("schedule", KINDS, "constant")),
        warmup=table.integer("warmup", 0, most=steps),
        final=table.number("final", 0.1, most=1.0),
        cooldown=table.number("cooldown", 0.2, most=1.0),
    )
    skip = table.integer("skip", 0)
    if skip and not length < skip <= model.max_position_embeddings:
        most = f"max_position_embeddings = {model.max_position_embeddings}"
        raise table.fail("skip", f"0, or more than length = {length} and at most the model's {most}")
    attention = _attention(table, model)
    gate = _gate(table.table("gate")) if "gate" in table else None
    if gate is not None and gate.captured is not None and "warmup" not in attention:
        raise ConfigError(f'{table.where}gate.captured needs a layer whose attention is "warmup": no other measures it')
    kl_keys = cast(c.KlKeys, table.choice("kl_keys", get_args(c.KlKeys), "chosen"))
    if kl_keys == "all" and ("sparse" not in attention or "warmup" in attention):
        raise ConfigError(f'{table.where}kl_keys = "all" is for layers whose attention is "sparse"')
    static = "static" in attention or "static" in table
    topk = table.integer("topk_blocks", model.topk_blocks, least=model.local_blocks + model.init_blocks)
    stage = c.StageConfig(
        name=name,
        steps=steps,
        minutes=table.number("minutes", above=True) if "minutes" in table else None,
        length=length,
        batch=batch,
        micro=table.integer("micro", batch, least=1, most=batch),
        attention=attention,
        static=_static(table, topk, model.block_size, length) if static else None,
        topk_blocks=topk,
        schedule=schedule,
        kl=table.number("kl", 1.0),
        kl_targets=table.number("kl_targets", 0.0, most=1.0),
        kl_keys=kl_keys,
        skip=skip,
        sources=_shares(table, sources),
        optimizer=_optimizer(table.table("optimizer"), optimizer),
        gate=gate,
    )
    fields = {field.name for field in dataclasses.fields(c.StageConfig)}
    table.finish(sorted(fields | {"warmup", "final", "cooldown"}))
    return stage


def _attention(table: Table, model: ModelConfig) -> tuple[c.AttentionMode, ...]:
    """A single mode leaves layers without an index branch dense; a list must say so itself."""
    modes = list(_per_layer(table, "attention", c.ATTENTION_MODES, model.num_layers))
    for layer, kind in enumerate(model.attention_kinds):
        if kind == "full" and modes[layer] != "dense":
            if isinstance(table.get("attention"), list):
                raise table.fail("attention", f'"dense" for layer {layer}, which has no index branch')
            modes[layer] = "dense"
    return cast(tuple[c.AttentionMode, ...], tuple(modes))


def _static(stage: Table, topk: int, block_size: int, length: int) -> StaticPolicy:
    table = stage.table("static")
    given = {
        key: table.integer(key, least=least)
        for key, least in (("window", 1), ("anchor_stride", 1), ("random", 0), ("seed", 0))
        if key in table
    }
    table.finish(("window", "anchor_stride", "random", "seed"))
    return StaticPolicy.spread(length, topk=topk, block_size=block_size, **given)


def _shares(table: Table, sources: tuple[c.SourceConfig, ...]) -> dict[str, float]:
    """sources = ["a", "b"] with the weights of [[data]], or { a = 3, b = 1 }; all sources if there is no such key."""
    weights = {source.name: source.weight for source in sources}
    value = table.get("sources")
    if value is None:
        chosen = weights
    elif isinstance(value, list) and value and all(isinstance(name, str) and name in weights for name in value):
        chosen = {name: weights[name] for name in value}
    elif isinstance(value, Mapping) and value and all(name in weights for name in value):
        inner = table.table("sources")
        chosen = {name: inner.number(name, above=True) for name in value}
    else:
        raise table.fail("sources", f"names of [[data]], or a table name = weight; names: {', '.join(weights)}")
    total = sum(chosen.values())
    return {name: weight / total for name, weight in chosen.items()}


def _gate(table: Table) -> c.Gate:
    gate = c.Gate(
        captured=table.number("captured", most=1.0) if "captured" in table else None,
        accuracy=table.number("accuracy", most=1.0) if "accuracy" in table else None,
        window=table.integer("window", 20, least=1),
        early=table.boolean("early", False),
        required=table.boolean("required", True),
    )
    if gate.captured is None and gate.accuracy is None:
        raise ConfigError(f"{table.where[:-1]} asks for nothing; expected captured, accuracy or both")
    table.finish(("captured", "accuracy", "window", "early", "required"))
    return gate


def _validation(table: Table, model: ModelConfig, sources: tuple[c.SourceConfig, ...]) -> c.ValidationConfig:
    config = c.ValidationConfig(
        every=table.integer("every", least=1),
        rows=table.integer("rows", least=1, most=MAX_ROWS),
        length=table.integer("length", least=2, most=min(MAX_LENGTH, model.max_position_embeddings)),
        sources=_shares(table, sources),
    )
    table.finish()
    return config


def _unique(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"[[{what}]] name {name!r} comes more than once; names must differ")
