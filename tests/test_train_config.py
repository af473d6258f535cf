"""Training configurations: wrong values are named, stages override only themselves, schedules end where they say."""

from __future__ import annotations

import itertools
import tomllib
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longsight.model import ConfigError
from longsight.train.config import (
    GROUPS,
    Gate,
    GroupConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
    ValidationConfig,
)
from longsight.train.config_toml import from_dict
from longsight.train.data import Data
from longsight.train.schedule import KINDS, Schedule
from tiny_checkpoint import CONFIG, write_tiny_checkpoint

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.toml"))
MODEL = """
vocab_size = 1153
hidden_size = 64
num_layers = 3
num_heads = 4
num_kv_heads = 2
head_dim = 32
rotary_dim = 16
index_dim = 32
block_size = 16
topk_blocks = 4
max_position_embeddings = 65536
attention_kinds = ["full", "sparse", "sparse"]
dense_intermediate_size = 64
"""
TEXT = f"""
[model]
{MODEL}
[[data]]
name = "a"
task = "recall"
[[data]]
name = "b"
task = "recall-needles"
weight = 3
queries = 4
[optimizer]
clip = 0.5
matrices = {{ lr = 0.01, decay = 0.1 }}
[run]
out = "runs/x"
[[stage]]
name = "one"
steps = 100
length = 64
batch = 8
topk_blocks = 5
attention = "sparse"
[[stage]]
name = "two"
steps = 50
length = 128
batch = 4
micro = 2
attention = ["dense", "static", "warmup"]
static = {{ window = 1, random = 2 }}
skip = 65536
kl = 0.5
schedule = "wsd"
warmup = 5
cooldown = 0.4
sources = {{ b = 1 }}
gate = {{ captured = 0.9 }}
optimizer = {{ clip_index = 2.0, index_matrices = {{ lr = 0.03 }} }}
[validation]
every = 10
rows = 4
length = 64
sources = ["b"]
"""


def parse(text: str, directory: Path = Path()) -> TrainConfig:
    return from_dict(tomllib.loads(text), directory)


def test_a_whole_file() -> None:
    config = parse(TEXT)
    one, two = config.stages
    assert one.attention == ("dense", "sparse", "sparse")  # layer 0 has no index branch
    assert two.attention == ("dense", "static", "warmup")
    assert two.static is not None
    assert (two.static.window, two.static.anchor_stride, two.static.random) == (1, 8, 2)
    assert (one.topk_blocks, two.topk_blocks) == (5, 4)
    assert (one.micro, two.micro) == (8, 2)
    assert one.sources == {"a": 0.25, "b": 0.75}
    assert two.sources == {"b": 1.0}
    assert two.schedule == Schedule("wsd", 5, 0.1, 0.4)
    assert two.gate is not None
    assert (two.gate.captured, two.gate.accuracy) == (0.9, None)
    assert config.data[1].options == {"queries": 4}
    assert config.validation is not None
    assert config.validation.sources == {"b": 1.0}


def test_a_stage_overrides_only_what_it_names() -> None:
    config = parse(TEXT)
    one, two = (stage.optimizer for stage in config.stages)
    assert one == config.optimizer
    assert tuple(one.groups) == GROUPS
    assert (one.clip, one.clip_index, two.clip, two.clip_index) == (0.5, 1.0, 0.5, 2.0)
    assert two.groups["index_matrices"].lr == 0.03
    assert {name for name in GROUPS if two.groups[name] != one.groups[name]} == {"index_matrices"}
    assert (one.groups["matrices"].lr, one.groups["matrices"].decay) == (0.01, 0.1)


def test_paths_start_at_the_file_but_the_output_where_the_program_runs(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "model")
    text = TEXT.replace(MODEL, 'path = "model"').replace('task = "recall"\n', 'tokens = "text"\n', 1)
    with pytest.raises(ConfigError, match=r"skip is 65536; .* max_position_embeddings = 4096"):
        parse(text, tmp_path)
    text = text.replace("[model]", "[model]\nmax_position_embeddings = 65536")
    (tmp_path / "run.toml").write_text(text + '[tokenizer]\npath = "text/tokenizer.json"\n')
    config = TrainConfig.from_file(tmp_path / "run.toml")
    assert config.model.path == checkpoint
    assert config.model.config == replace(CONFIG, max_position_embeddings=65536)
    assert config.data[0].tokens == tmp_path / "text"
    assert config.tokenizer.path == tmp_path / "text/tokenizer.json"
    assert config.run.out == Path("runs/x")


BAD = [
    ("vocab_size = 1153", "vocab_size = 0", "vocab_size is 0"),
    ("vocab_size = 1153\n", "", "model.vocab_size is missing"),
    ("hidden_size = 64", "hidden_size = 65", "model: hidden_size is 65"),
    ("hidden_size = 64", "hidden_sise = 64", "hidden_size is missing"),
    ("[model]", "[model]\nlayers = 3", "model.layers = 3 is not known; accepted: attention_kinds"),
    ("[model]", '[model]\nstart = "spelling"', 'model.start is "spelling", which reads tokens'),
    ("[model]", '[model]\nstart = "warm"', "model.start is 'warm'; expected one of random, previous-token"),
    ("[model]", '[model]\ndtype = "int8"', "model.dtype is 'int8'"),
    ("[model]", "[model]\neos_token_ids = [-1]", r"model.eos_token_ids is \[-1\]"),
    ('["full", "sparse", "sparse"]', '["full"]', r"model.attention_kinds is \['full'\]; .* a list of 3"),
    ('name = "b"', 'name = "a"', r"\[\[data\]\] name 'a' comes more than once"),
    ('task = "recall"\n', "", r"data 1 \(a\) must have either tokens"),
    ("weight = 3", "weight = 0", "data 2.weight is 0; expected a number above 0"),
    ("weight = 3", 'weight = "3"', "data 2.weight is '3'"),
    ("clip = 0.5", "clip = nan", "optimizer.clip is nan"),
    ("clip = 0.5", "embedding.kind = 'muon'", "optimizer.embedding.kind is 'muon'; expected one of adamw"),
    ("clip = 0.5", "bias.lr = 1", "optimizer.bias = .* is not known"),
    ("{ lr = 0.01,", "{ betas = [0, 1],", "optimizer.matrices.betas = .* accepted: decay, kind, lr, momentum"),
    ("{ lr = 0.01,", "{ lr = -1,", "optimizer.matrices.lr is -1"),
    ("[run]", "[run]\nseed = true", "run.seed is True"),
    ("[run]", "[run]\nprecision = 'fp16'", "run.precision is 'fp16'; expected one of fp32, bf16"),
    ('out = "runs/x"', "", "run.out is missing"),
    ("steps = 100", "steps = 0", "stage 1.steps is 0"),
    ("steps = 100", "minutes = 5", "stage 1.steps is missing"),
    ("length = 64", "length = 70000", "stage 1.length is 70000; expected a whole number from 2 to 65536"),
    ("micro = 2", "micro = 5", "stage 2.micro is 5; expected a whole number from 1 to 4"),
    ('"sparse"\n[[stage', '"swa"\n[[stage', "stage 1.attention is 'swa'; expected one of dense, warmup, sparse"),
    ('["dense", "static", "warmup"]', '["sparse", "sparse", "sparse"]', "stage 2.attention .* layer 0, which has no"),
    ("skip = 65536", "skip = 128", "stage 2.skip is 128; expected 0, or more than length = 128 and at most .* 65536"),
    ("skip = 65536", "skip = 65537", "stage 2.skip is 65537"),
    ('"wsd"', '"step"', "stage 2.schedule is 'step'; expected one of constant, linear, cosine, wsd"),
    ("warmup = 5", "warmup = 51", "stage 2.warmup is 51"),
    ("sources = { b = 1 }", "sources = { c = 1 }", "stage 2.sources .* names: a, b"),
    ("sources = { b = 1 }", "sources = { b = 0 }", "stage 2.sources.b is 0"),
    ("sources = { b = 1 }", "sources = []", r"stage 2.sources is \[\]"),
    ("captured = 0.9", "captured = 90", "stage 2.gate.captured is 90"),
    ('"static", "warmup"]', '"static", "sparse"]', 'stage 2.gate.captured needs a layer whose attention is "warmup"'),
    (
        "lr = 0.03",
        'kind = "adamw"',
        "stage 2.optimizer.index_matrices.kind = 'adamw' is not known; accepted: decay, lr",
    ),
    ("topk_blocks = 5", "topk_blocks = 0", "stage 1.topk_blocks is 0; expected a whole number from 1"),
    ("skip = 65536", "kl_keys = 'some'", "stage 2.kl_keys is 'some'; expected one of chosen, all"),
    ("skip = 65536", "kl_keys = 'all'", 'stage 2.kl_keys = "all" is for layers whose attention is "sparse"'),
    ("window = 1", "window = 0", "stage 2.static.window is 0"),
    ('name = "two"', 'name = "one"', r"\[\[stage\]\] name 'one'"),
    ("every = 10", "each = 10", "validation.every is missing"),
    ("[validation]", "[valid]", "valid = .* is not known; accepted: data, model"),
]


@pytest.mark.parametrize(("before", "after", "message"), BAD, ids=[after[:30] for _, after, _ in BAD])
def test_what_is_wrong_is_named(before: str, after: str, message: str) -> None:
    assert before in TEXT
    with pytest.raises(ConfigError, match=message):
        parse(TEXT.replace(before, after, 1))


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    with pytest.raises(ConfigError, match=r"cannot read .*run\.toml"):
        TrainConfig.from_file(path)
    for content, message in ((b"[", "is not valid TOML"), (b"\xff", "is not valid TOML"), (b"", "model.num_layers")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"run\.toml.*{message}"):
            TrainConfig.from_file(path)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each value of nested tables and lists is."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *itertools.chain.from_iterable(paths(inner, (*at, key)) for key, inner in items)]


PLACES = [place for place in paths(tomllib.loads(TEXT)) if place]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PLACES), VALUES)
def test_any_value_anywhere_is_taken_or_refused_by_name(place: tuple[Any, ...], value: object) -> None:
    data = tomllib.loads(TEXT)
    *path, last = place
    inner: Any = data
    for key in path:
        inner = inner[key]
    inner[last] = value
    with suppress(ConfigError):
        from_dict(data, Path())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    config = TrainConfig.from_file(path)
    if all(source.tokens is None for source in config.data):
        assert len(Data(config).stages) == len(config.stages)


def test_there_are_examples() -> None:
    assert [path.name for path in EXAMPLES if path.name == "recall.toml"]


STEPS = 40


@pytest.mark.parametrize("kind", KINDS)
def test_schedules_at_their_ends(kind: Any) -> None:
    schedule = Schedule(kind, warmup=4, final=0.1, cooldown=0.25)
    factors = [schedule.factor(step, STEPS) for step in range(STEPS)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[-1] == pytest.approx(1.0 if kind == "constant" else 0.1)
    assert all(a >= b for a, b in itertools.pairwise(factors[4:]))
    assert max(factors) == 1.0


def test_the_shapes_between() -> None:
    middle = (4 + STEPS - 1) / 2  # of the fall, after a warm-up of 4
    linear, cosine = Schedule("linear", 4, 0.2), Schedule("cosine", 4, 0.2)
    for schedule in (linear, cosine):
        around = [schedule.factor(int(middle) + offset, STEPS) for offset in (0, 1)]
        assert sum(around) / 2 == pytest.approx(0.6, abs=1e-6)
    assert cosine.factor(10, STEPS) > linear.factor(10, STEPS)
    wsd = Schedule("wsd", 4, 0.0, cooldown=0.25)
    factors = [wsd.factor(step, STEPS) for step in range(STEPS)]
    assert factors[4:30] == [1.0] * 26
    assert factors[30:] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])


@given(st.sampled_from(KINDS), st.integers(1, 30), st.integers(0, 30), st.floats(0, 1), st.floats(0, 1))
def test_a_factor_is_a_share(kind: Any, steps: int, warmup: int, final: float, cooldown: float) -> None:
    schedule = Schedule(kind, warmup, final, cooldown)
    assert all(0 <= schedule.factor(step, steps) <= 1 + 1e-12 for step in range(steps))


def test_the_documented_file_is_valid() -> None:
    """Read as the run reads it, with every key of a stage that the tables name."""
    docs = (Path(__file__).parent.parent / "docs/training.md").read_text(encoding="utf-8")
    config = parse(docs.split("```toml\n")[1].split("```")[0])
    assert [stage.name for stage in config.stages] == ["warm-up", "sparse"]
    assert config.stages[1].optimizer.groups["matrices"].lr == 0.01
    for cls in (SourceConfig, RunConfig, StageConfig, ValidationConfig, OptimizerConfig, GroupConfig, Gate, Schedule):
        names = {field.name for field in fields(cls)} - {"options", "groups"}
        assert {name for name in names if f"`{name}`" not in docs and f"`GROUP.{name}`" not in docs} <= {"kind"}
