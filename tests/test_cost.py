"""The cost model against published figures."""

from __future__ import annotations

import pytest
import torch

from longsight.cli.main import main
from longsight.model import ModelConfig
from longsight.model.constructed import config
from longsight.ops import cost
from longsight.ops.cost import MINIMAX_M3, AttentionShape

M3 = AttentionShape()

# context, GFLOP per token (dense, index, main), FLOP ratio, MB per decode step (dense, MSA), byte ratio
TABLE = [
    (4, 0.067, 0.002, 0.067, 0.97, 8.4, 5.2, 1.60),
    (8, 0.134, 0.004, 0.067, 1.88, 16.8, 6.3, 2.67),
    (16, 0.268, 0.008, 0.067, 3.56, 33.6, 8.4, 4.00),
    (32, 0.537, 0.017, 0.067, 6.40, 67.1, 12.6, 5.33),
    (64, 1.07, 0.034, 0.067, 10.7, 134, 21.0, 6.40),
    (128, 2.15, 0.067, 0.067, 16.0, 268, 37.7, 7.11),
    (256, 4.29, 0.134, 0.067, 21.3, 537, 71.3, 7.53),
    (512, 8.59, 0.268, 0.067, 25.6, 1074, 138, 7.76),
    (1024, 17.18, 0.537, 0.067, 28.4, 2147, 273, 7.88),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}K")
def test_the_published_table(row: tuple[float, ...]) -> None:
    n = int(row[0]) * 1024
    dense = cost.dense_prefill_flops(M3, n)
    gqa, msa = cost.gqa_decode_bytes(M3, n), cost.msa_decode_bytes(M3, n)
    figures = (
        dense / n / 1e9,
        cost.index_prefill_flops(M3, n) / n / 1e9,
        cost.main_prefill_flops(M3, n) / n / 1e9,
        dense / cost.msa_prefill_flops(M3, n),
        gqa / 1e6,
        msa / 1e6,
        gqa / msa,
    )
    for figure, published in zip(figures, row[1:], strict=True):
        digits = len(str(published).split(".")[1]) if "." in str(published) else 0
        # Printed figures are rounded, one or two of them upwards from just below the half.
        assert abs(figure - published) <= 0.51 * 10**-digits


def test_headline_figures() -> None:
    n = 1 << 20
    ratio = cost.dense_prefill_flops(M3, n) / cost.msa_prefill_flops(M3, n)
    assert round(ratio, 1) == 28.4
    assert round(cost.gqa_decode_bytes(M3, n) / cost.msa_decode_bytes(M3, n), 2) == 7.88
    assert round(cost.dense_decode_flops(M3, n) / cost.msa_decode_flops(M3, n), 1) == 30.1
    assert round(cost.index_prefill_flops(M3, n) / cost.msa_prefill_flops(M3, n), 2) == 0.89
    assert cost.dense_decode_bytes(M3, n) == 16 * cost.gqa_decode_bytes(M3, n)


def test_m3_as_published() -> None:
    assert cost.kv_bytes_per_token(MINIMAX_M3) == 137_472
    gib = cost.kv_bytes_per_token(MINIMAX_M3) * (1 << 20) / 2**30
    assert round(gib) == 134
    # About 23 B active parameters, not counting the embedding and output tables.
    assert 22.5e9 < MINIMAX_M3.linear_parameters - 200064 * 6144 < 23.6e9


def test_exact_counts_are_what_the_operators_read() -> None:
    """Counted from a real selection, against the closed forms."""
    shape = AttentionShape(heads=2, kv_heads=1, head_dim=16, index_dim=16, block_size=16, topk_blocks=3)
    for n in (1, 16, 47, 48, 49, 64, 101, 200):
        attended = sum(p + 1 if p < 48 else 2 * 16 + p % 16 + 1 for p in range(n))
        scored = sum(16 * (p // 16) for p in range(n) if p // 16 >= 3)
        assert cost.attended_tokens(shape, n) == attended
        assert cost.exact_main_prefill_flops(shape, n) == 4 * 2 * 16 * attended
        assert cost.exact_index_prefill_flops(shape, n) == 2 * 16 * scored
        assert cost.exact_dense_prefill_flops(shape, n) == 4 * 2 * 16 * n * (n + 1) // 2
    for exact in (cost.exact_main_prefill_flops, cost.exact_index_prefill_flops, cost.exact_dense_prefill_flops):
        assert exact(shape, 70) + exact(shape, 200, 70) == exact(shape, 200)


def test_cache_memory_is_what_pages_take() -> None:
    built = ModelConfig.from_dict(config())
    assert cost.kv_bytes_per_token(built.shape()) * built.block_size == built.page_bytes(torch.bfloat16)


def test_command_prints_the_ratio_and_refuses_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--tokens", "1048576"]) == 0
    out = capsys.readouterr().out
    assert "28.44x" in out
    assert "7.88x" in out
    assert main(["cost", "/no/such/config.json"]) == 1
    assert "/no/such/config.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["cost", "--tokens", "0"])


def test_tables_fit_a_terminal_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["cost", "--tokens", "4096,131072,1048576"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    for cell in ("11.99x", "1,133", "20.5 GiB", "134 GiB", "1,048,576"):
        assert cell in out
