"""A training run of a second or two: dense, warm-up and sparse stages of a tiny model with every kind of part."""

from __future__ import annotations

import csv
import math
from pathlib import Path

CONFIG = """
[model]
vocab_size = 97
hidden_size = 32
num_layers = 2
num_heads = 2
num_kv_heads = 1
head_dim = 32
rotary_dim = 16
max_position_embeddings = 4096
attention_kinds = "sparse"
mlp_kinds = ["dense", "moe"]
dense_intermediate_size = 32
intermediate_size = 16
shared_intermediate_size = 16
num_experts = 4
experts_per_token = 2
index_dim = 32
block_size = 16
topk_blocks = 2
dtype = "float32"

[tokenizer]
source = "pairs"

[[data]]
name = "pairs"
task = "recall"
keys = [2, 12]
vocab_fillers = 16
vocab_values = 16
vocab_keys = 64

[optimizer]
matrices = { kind = "muon", lr = 0.01 }

[run]
out = "unused"
save_every = 3
keep = 100

[[stage]]
name = "dense"
steps = 4
length = 64
batch = 4
attention = "dense"

[[stage]]
name = "warm-up"
steps = 4
length = 64
batch = 4
attention = "warmup"
skip = 1024
warmup = 2

[[stage]]
name = "sparse"
steps = 12
length = 64
batch = 4
attention = "sparse"
schedule = "cosine"

[validation]
every = 5
rows = 4
length = 64
"""
STEPS = 20
UNTIMED = "tokens_per_second"

Rows = list[dict[str, str]]


def write_config(directory: Path, more: str = "") -> Path:
    path = directory / "tiny.toml"
    path.write_text(CONFIG + more)
    return path


def read_log(out: Path) -> Rows:
    """The rows of a run's log without what a clock measured."""
    path = out / "log.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: cell for name, cell in row.items() if name != UNTIMED} for row in csv.DictReader(file)]


def furthest(ours: Rows, theirs: Rows, columns: tuple[str, ...] = ()) -> float:
    """The largest difference relative to the larger number (at least 1) between two logs of the same steps."""
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        for name in columns or mine:
            if name == "stage" or not (mine[name] or other[name]):
                continue
            a, b = float(mine[name]), float(other[name])
            assert math.isfinite(a - b), (name, a, b)
            worst = max(worst, abs(a - b) / max(1.0, abs(a), abs(b)))
    return worst
