"""transformers' M3 attention module against our operators: one prefill, from projected states to attention output."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.compare import outputs_agree, require
from bench.harness import Row, Session, Target, Timing, child, progress
from bench.shapes import M3, tokens

NAME = "transformers_module"
TITLE = "transformers' M3 attention module, projections excluded on both sides"
FASTER, LESS_MEMORY = Target(15.0), Target(50.0)
OTHER_BLOCKS_FP32 = 1e-3  # share of (token, group) sets that may differ: near-ties of two fp32 sums
OTHER_BLOCKS_BF16 = 0.05  # transformers rounds cos, sin and each step of the rotation to bf16, we round once


def run(session: Session) -> None:
    n = session.pick(4096, 2304)
    compare(session, "float32", session.pick(2560, 2304), OTHER_BLOCKS_FP32, 1e-4)
    session.settle()
    results = compare(session, "bfloat16", n, OTHER_BLOCKS_BF16, 3e-2)
    times = {side: Timing(tuple(result["seconds"])) for side, result in results.items()}
    memory = {side: result["extra_bytes"] for side, result in results.items()}
    detail: dict[str, Any] = {side: {**times[side].as_dict(), "extra_bytes": memory[side]} for side in results}
    where = {"tokens": tokens(n), "dtype": "bf16", "heads": f"{M3.heads}/{M3.kv_heads}"}
    ratio = times["transformers"].best / times["ours"].best
    session.add(Row("faster than the module", ratio, "x", where, FASTER, detail))
    less = memory["transformers"] / memory["ours"]
    session.add(Row("less extra memory than the module", less, "x", where, LESS_MEMORY, detail))
    session.add(Row("extra memory, ours", memory["ours"] / 2**20, "MiB", where))
    session.add(Row("extra memory, the module", memory["transformers"] / 2**20, "MiB", where))
    session.note("extra memory: peak of the process above its inputs; ours includes the pages of K, V and index keys")
    session.note(
        "the module runs in one shot, as transformers' prefill does; ours in chunks of 1,024 rows, as the engine does"
    )


def compare(session: Session, dtype: str, n: int, other_blocks: float, limit: float) -> dict[str, dict[str, Any]]:
    """Run both sides in processes of their own and compare their blocks and outputs. Returns side -> its JSON."""
    results: dict[str, dict[str, Any]] = {}
    outputs: dict[str, dict[str, Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder, progress(f"{NAME}: {dtype}, {n} tokens") as say:
        for side, repeats in (("ours", session.pick(5, 1)), ("transformers", session.pick(2, 1))):
            say(f"{NAME}: {side}, {dtype}, {n} tokens")
            path = str(Path(folder) / side)
            threads = str(torch.get_num_threads())
            worker = "bench.workers.attention_module"
            results[side] = child(worker, side, dtype, str(n), str(repeats), threads, path)
            outputs[side] = torch.load(path)
    mine, other = outputs["ours"], outputs["transformers"]
    width = other["ids"].shape[-1]
    # Shorter than k blocks: transformers returns fewer columns. Sorting puts -1 first on both sides.
    same = (mine["ids"].sort(-1).values[..., -width:] == other["ids"].sort(-1).values).all(-1)  # [T, H_kv]
    what = f"{dtype}, {n} tokens"
    session.passed(require(f"{what}: share of other block sets", 1 - same.float().mean().item(), other_blocks))
    by_group = same.repeat_interleave(M3.heads // M3.kv_heads, dim=1)
    a, b = (side["out"].view(n, M3.heads, M3.dim)[by_group] for side in (mine, other))
    session.passed(outputs_agree(f"{what}: outputs where the block sets are equal", a, b, limit))
    return results
