"""What this machine can do at most: the rulers of all other benches."""

from __future__ import annotations

from functools import partial

import torch

from bench.compare import outputs_agree
from bench.harness import Row, Session

NAME = "ceilings"
TITLE = "bf16 dot-product peak, torch's bf16 GEMM, streaming read"


def run(session: Session) -> None:
    from longsight.ops import kernels

    threads = torch.get_num_threads()
    sizes = session.pick((1024, 2048, 3072, 4096), (256,))
    generator = torch.Generator().manual_seed(0)
    operands = {
        size: [torch.randn(size, size, generator=generator).to(torch.bfloat16) for _ in range(2)] for size in sizes
    }
    a, b = operands[sizes[0]]
    session.passed(outputs_agree("torch bf16 GEMM against fp64", a @ b, a.double() @ b.double(), 1e-2))
    times = session.race({str(size): partial(torch.mm, x, y) for size, (x, y) in operands.items()}, repeats=9)
    rates = {size: 2 * size**3 / times[str(size)].best for size in sizes}
    best = max(rates, key=lambda size: rates[size])
    detail = {"flops_by_size": rates, "timing": {size: t.as_dict() for size, t in times.items()}}
    if session.backend.NAME != "reference":
        peak = max(kernels.peak_bf16_flops(threads) for _ in range(session.pick(5, 1)))
        session.add(Row("bf16 dot-product instruction, registers only", peak / 1e9, "GFLOP/s", {"threads": threads}))
        detail["share_of_instruction_peak"] = rates[best] / peak
        read_bytes = session.pick(1 << 30, 1 << 24)
        samples = [kernels.stream_read_bandwidth(read_bytes, threads) for _ in range(session.pick(5, 1))]
        shape = {"bytes": read_bytes, "threads": threads}
        session.add(Row("streaming read", max(samples) / 1e9, "GB/s", shape, detail={"samples": samples}))
    session.add(Row("torch bf16 matmul, best size", rates[best] / 1e9, "GFLOP/s", {"size": f"{best}^3"}, detail=detail))
    session.note(
        "memory bandwidth of a virtual machine drifts: other benches measure it again beside what they compare"
    )
