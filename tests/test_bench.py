"""The benches' own rules: wrong outputs are refused, records keep their form, peers get the weights we say they get."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

from bench import harness, load, main_branch, registry, serving, shapes
from bench.compare import MismatchError, block_maxima, outputs_agree, require, selection_agrees
from bench.harness import BenchError, Check, Row, Session, Target, Timing
from bench.machine import ROOT
from bench.peers import llama_server
from bench.peers.gguf_model import ARCH, gguf_tensors, write_gguf
from bench.peers.random_model import Geometry, is_fp32, random_weights
from bench.scan import torch_select
from longsight.ops import LayerPages, reference
from longsight.ops.layout import pack

TINY = Geometry(
    vocab=48,
    hidden=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    rotary_dim=8,
    index_dim=16,
    experts=3,
    expert_width=16,
)
SMALL = shapes.Shape(heads=4, kv_heads=2, dim=16, index_dim=16, block=16, topk=4)


# Comparers


def test_outputs_agree_reports_the_relative_error() -> None:
    want = torch.full((4, 4), 2.0)
    assert outputs_agree("x", want + 0.02, want, 0.02).error == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (torch.ones(4) * 1.1, torch.ones(4)),
        (torch.ones(4), torch.ones(2, 2)),
        (torch.tensor([1.0, math.nan]), torch.ones(2)),
        (torch.tensor([1.0, math.inf]), torch.ones(2)),
        (torch.zeros(4), torch.zeros(4)),
    ],
    ids=["wrong", "shape", "nan", "inf", "nothing to compare"],
)
def test_outputs_agree_refuses(got: torch.Tensor, want: torch.Tensor) -> None:
    with pytest.raises(MismatchError):
        outputs_agree("x", got, want, 0.05)


def test_require_refuses_nan() -> None:
    with pytest.raises(MismatchError, match="nan"):
        require("x", math.nan, 1.0)


SCORES = torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0, 0.0]], dtype=torch.float64)  # the own block is 5


def test_selection_agrees_with_the_exact_choice() -> None:
    ids = torch.tensor([[0, 2, 5]], dtype=torch.int32)
    assert selection_agrees("x", ids, SCORES, 3, 1e-3).error == 0.0
    short = torch.tensor([[0, 1, -1]], dtype=torch.int32)
    assert selection_agrees("x", short, SCORES[:, :2], 3, 1e-3).error == 0.0


def test_selection_agrees_allows_a_near_tie_only() -> None:
    scores = SCORES.clone()
    scores[0, 4] = 4.0 + 5e-4  # block 4 beats the chosen block 2 by less than fp32 rounding
    ids = torch.tensor([[0, 2, 5]], dtype=torch.int32)
    assert selection_agrees("x", ids, scores, 3, 1e-3).error == pytest.approx(5e-4)
    with pytest.raises(MismatchError):
        selection_agrees("x", ids, scores, 3, 1e-4)


@pytest.mark.parametrize(
    "ids",
    [[2, 0, 5], [0, 2, 4], [0, 5, -1], [0, 0, 5], [1, 3, 5], [-1, 0, 5]],
    ids=["order", "own block missing", "too few", "twice", "worse blocks", "padding first"],
)
def test_selection_agrees_refuses(ids: list[int]) -> None:
    with pytest.raises(MismatchError):
        selection_agrees("x", torch.tensor([ids], dtype=torch.int32), SCORES, 3, 1e-3)


def test_block_maxima_hides_the_future() -> None:
    keys = torch.zeros(64, 16)
    keys[37, 0] = 9.0
    q = torch.zeros(1, 16)
    q[0, 0] = 1.0
    assert block_maxima(q, keys, 36, 16).tolist() == [[0.0, 0.0, 0.0]]
    assert block_maxima(q, keys, 37, 16).tolist() == [[0.0, 0.0, 9.0]]


# Shapes and data


@pytest.mark.parametrize(("n", "ratio"), [(1 << 13, 1.88), (1 << 15, 6.40), (1 << 17, 16.0), (1 << 20, 28.4)])
def test_published_flop_ratios(n: int, ratio: float) -> None:
    assert shapes.M3.published_ratio(n) == pytest.approx(ratio, rel=4e-3)


@pytest.mark.parametrize(("rows", "kv_len"), [(1, 1), (7, 7), (64, 64), (65, 65), (200, 200), (30, 150), (1, 129)])
def test_main_flops_counts_every_attended_pair(rows: int, kv_len: int) -> None:
    pairs = 0
    for position in range(kv_len - rows, kv_len):
        chosen = min(position // SMALL.block + 1, SMALL.topk)
        pairs += (chosen - 1) * SMALL.block + position % SMALL.block + 1
    assert SMALL.main_flops(rows, kv_len) == 4 * SMALL.heads * SMALL.dim * pairs
    assert shapes.attended(rows, kv_len) == sum(p + 1 for p in range(kv_len - rows, kv_len))


@pytest.mark.parametrize(("first", "kept"), [(0, 0.0), (5, 0.75), (1000, 0.75), (1000, 0.0)])
def test_random_selection_keeps_the_contract(first: int, kept: float) -> None:
    ids = main_branch.random_selection(40, first, SMALL, kept, seed=1)
    for row in range(40):
        own = (first + row) // SMALL.block
        for group in range(SMALL.kv_heads):
            chosen = [b for b in ids[row, group].tolist() if b >= 0]
            assert len(chosen) == min(SMALL.topk, own + 1)
            assert chosen == sorted(set(chosen))
            assert chosen[-1] == own
            assert ids[row, group, len(chosen) :].tolist() == [-1] * (SMALL.topk - len(chosen))


def test_overlap_follows_the_chance_to_be_kept() -> None:
    shape = shapes.Shape(block=16)
    kept = shapes.overlap(main_branch.random_selection(200, 16000, shape, 0.75, seed=1))
    fresh = shapes.overlap(main_branch.random_selection(200, 16000, shape, 0.0, seed=1))
    assert kept > 0.7
    assert fresh < 0.2


def test_given_index_keys_reach_their_pages() -> None:
    keys = shapes.smooth(40, SMALL.index_dim, 0.9, 4, seed=3)
    pages = shapes.random_pages(SMALL, 40, seed=0, kv=False, index_keys=keys)
    assert torch.equal(pages.index_keys(torch.arange(3)).flatten(0, 1)[:40], keys)


def test_torch_select_makes_the_reference_choice() -> None:
    # Distinct integers below 256 are exact in bf16, so there are no ties, which torch.topk would break as it likes.
    keys = torch.zeros(160, SMALL.index_dim, dtype=torch.bfloat16)
    keys[:, 0] = torch.randperm(160, generator=torch.Generator().manual_seed(5)).to(torch.bfloat16)
    index_q = torch.zeros(24, SMALL.kv_heads, SMALL.index_dim, dtype=torch.bfloat16)
    index_q[:, :, 0] = torch.tensor([1.0, -1.0])
    pages = LayerPages.allocate(SMALL.layout, 10)
    assert pages.index_k is not None
    pages.index_k.copy_(pack(keys.unflatten(0, (-1, SMALL.block))))
    want = reference.select_blocks(index_q, pages, shapes.suffix_batch(24, 160, SMALL.block), topk=SMALL.topk)
    got = torch_select(index_q, keys, 136, SMALL)
    assert torch.equal(got.sort(-1).values, want.long())


# Records


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(harness, "WORK", tmp_path)
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    return Session("example", "an example", quick=True)


def test_no_figure_before_a_check(session: Session) -> None:
    row = Row("speed", 2.0, "x", {"tokens": "8K"}, Target(1.0))
    with pytest.raises(BenchError, match="before any output was compared"):
        session.add(row)
    session.passed(Check("same", 0.0, 1.0))
    session.add(row)
    assert session.rows == [row]


def test_nothing_measured_is_an_error(session: Session) -> None:
    with pytest.raises(BenchError, match="measured nothing"):
        session.finish()


def test_the_last_line_is_the_record_that_was_written(
    session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session.passed(Check("same", 0.0, 1.0))
    times = session.race({"a": lambda: None}, repeats=3)
    session.add(Row("speed", 2.0, "x", {"tokens": "8K"}, Target(3.0), times["a"].as_dict()))
    session.note("a note")
    session.finish()
    written = json.loads((tmp_path / "quick" / "example.json").read_text())
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1]) == written
    assert not (tmp_path / "results").exists()  # a quick run never replaces a real result
    check_schema(written)


def check_schema(record: dict[str, object]) -> None:
    assert record["schema"] == harness.SCHEMA
    assert str(record["command"]).startswith(f"python -m bench {record['name']}")
    machine = record["machine"]
    assert isinstance(machine, dict)
    assert {"cpu", "cores", "threads", "isa", "torch"} <= machine.keys()
    checks, rows = record["checks"], record["rows"]
    assert isinstance(checks, list)
    assert isinstance(rows, list)
    assert checks
    assert all(check["error"] <= check["limit"] for check in checks)
    for row in rows:
        assert {"what", "value", "unit", "shape", "target", "met", "detail"} <= row.keys()
        if row["target"] is None or record["quick"]:
            assert row["met"] is None
        else:
            target = Target(row["target"]["value"], row["target"]["at_least"])
            assert row["met"] is target.met(row["value"])


def test_kept_results_have_the_form() -> None:
    files = sorted((ROOT / "bench" / "results").glob("*.json"))
    for path in files:
        record = json.loads(path.read_text())
        assert path.stem == record["name"]
        assert path.stem in registry.NAMES
        assert record["quick"] is False
        check_schema(record)


def test_targets() -> None:
    assert Target(2.0).met(2.0)
    assert not Target(2.0).met(1.9)
    assert Target(2.0, at_least=False).met(2.0)
    assert not Target(2.0, at_least=False).met(2.1)
    assert Row("x", 1.0, "", {}, Target(2.0)).met(quick=False) is False
    assert Row("x", 1.0, "", {}, Target(2.0)).met(quick=True) is None


def test_timing_keeps_best_and_median() -> None:
    timing = Timing((3.0, 1.0, 2.0))
    assert (timing.best, timing.median) == (1.0, 2.0)


def test_a_rate_above_the_peak_is_refused(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "peak_flops", lambda: 100.0)
    session.quick = False
    assert session.fraction_of_peak(90.0, 80.0) == (0.9, 100.0)
    with pytest.raises(BenchError, match="the peak is wrong"):
        session.fraction_of_peak(120.0, 110.0)


def test_every_bench_loads_under_its_name() -> None:
    for name in registry.NAMES:
        bench = registry.load(name)
        assert (bench.NAME, bool(bench.TITLE)) == (name, True)
    with pytest.raises(BenchError, match="scan"):
        registry.load("scann")


# The same weights for llama.cpp


@pytest.mark.parametrize("storage", ["f16", "bf16"])
def test_gguf_round_trip(tmp_path: Path, storage: str) -> None:
    weights = random_weights(TINY)
    reader = gguf.GGUFReader(write_gguf(tmp_path / "m.gguf", TINY, weights, storage))
    wanted = gguf_tensors(weights)
    assert {t.name for t in reader.tensors} == wanted.keys()
    for tensor in reader.tensors:
        want = wanted[tensor.name]
        assert tensor.shape.tolist() == list(reversed(want.shape))
        raw = torch.from_numpy(tensor.data.copy())
        if tensor.tensor_type == gguf.GGMLQuantizationType.BF16:
            raw = raw.view(torch.bfloat16)
        # Equal, not close: every engine must hold the same numbers.
        assert torch.equal(raw.float().reshape(want.shape), want.float()), tensor.name
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.architecture"] == ARCH
    assert fields[f"{ARCH}.attention.indexer.block_size"] == TINY.block
    assert fields[f"{ARCH}.leading_dense_block_count"] == TINY.dense_layers
    assert fields[f"{ARCH}.rope.dimension_count"] == TINY.rotary_dim


def test_gguf_folds_one_plus_w_and_stacks_experts() -> None:
    weights = random_weights(TINY)
    tensors = gguf_tensors(weights)
    norm = weights["language_model.model.layers.1.self_attn.index_k_norm.weight"]
    assert torch.equal(tensors["blk.1.indexer.k_norm.weight"], norm.float() + 1)
    last = weights["language_model.model.layers.1.block_sparse_moe.experts.2.w2.weight"]
    assert torch.equal(tensors["blk.1.ffn_down_exps.weight"][2], last)


def test_gguf_refuses_an_unknown_tensor_and_storage(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mystery"):
        gguf_tensors({"mystery": torch.zeros(1)})
    with pytest.raises(ValueError, match="q4_0"):
        write_gguf(tmp_path / "m.gguf", TINY, {}, "q4_0")


def test_gguf_vocabulary_spells_every_token_its_own_way(tmp_path: Path) -> None:
    geometry = replace(TINY, vocab=300)
    reader = gguf.GGUFReader(write_gguf(tmp_path / "m.gguf", geometry, random_weights(geometry), vocabulary=True))
    spelled = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(set(spelled)) == len(spelled) == geometry.vocab
    assert spelled[299] == "\u2581w299"


def test_random_weights_are_exact_in_fp16() -> None:
    for name, tensor in random_weights(TINY).items():
        assert tensor.dtype == (torch.float32 if is_fp32(name) else torch.bfloat16)
        assert tensor.count_nonzero() > 0.9 * tensor.numel()
        if not is_fp32(name):
            assert torch.equal(tensor.half().float(), tensor.float()), name


# Servers


def event(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def test_a_stream_is_understood_wherever_it_is_cut() -> None:
    usage = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 2}}
    text = b": keep-alive\n\n" + event({"choices": [{"text": "w17 w3"}]}) + event({"choices": [], "usage": usage})
    text += b"data: [DONE]\n\n"
    for cut in range(len(text)):
        heard = serving.understand(serving.Ours("http://x"), 1.0, [(2.0, text[:cut]), (3.0, text[cut:])])
        assert (heard.ids, heard.evaluated) == ([17, 3], 7)
        assert heard.times == [2.0 if cut >= text.index(b'{"choices": [], ') - 6 else 3.0] * 2


def test_llama_progress_is_no_token() -> None:
    progress = event({"tokens": [0], "stop": False, "prompt_progress": {"processed": 64}})
    end = event({"tokens": [], "stop": True, "timings": {"prompt_n": 64}})
    chunks = [(2.0, progress), (3.0, event({"tokens": [5], "stop": False})), (4.0, end)]
    heard = serving.understand(serving.Llama("http://x"), 1.0, chunks)
    assert (heard.ids, heard.times, heard.read, heard.evaluated) == ([5], [3.0], [(2.0, 64)], 64)


@pytest.mark.parametrize("text", [event({"error": {"message": "no"}}), b'error: {"message": "no"}\n\n'])
def test_an_error_in_a_stream_is_no_answer(text: bytes) -> None:
    with pytest.raises(BenchError, match="broke off"):
        serving.understand(serving.Llama("http://x"), 1.0, [(2.0, text)])


def test_rates_of_streams() -> None:
    one = serving.Heard(0.0, [1] * 4, [2.0, 3.0, 4.0, 5.0], [(1.0, 80), (2.0, 100)])
    other = serving.Heard(0.0, [1] * 3, [3.0, 4.0, 6.0], [(3.0, 60)])
    assert serving.prompt_rate([one, other], 300) == 100.0
    assert serving.decode_rate([one, other]) == 1.5  # three tokens after 3 s and up to 5 s
    assert serving.windowed_rate([one, other]) == (pytest.approx(160 / 3), 160, 3.0)
    with pytest.raises(BenchError, match="at no moment"):
        serving.decode_rate([one, replace(other, times=[6.0, 7.0, 8.0])])


def test_arrivals_have_the_rate() -> None:
    asks = load.arrivals(load.Mix((8, 64), (2, 5), 400), rate=20.0, seconds=50.0, seed=3)
    assert len(asks) == pytest.approx(1000, rel=0.1)
    assert all(8 <= len(a.prompt) <= 64 and 2 <= a.answer <= 5 for a in asks)
    assert sorted(a.delay for a in asks) == [a.delay for a in asks]


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with (
        pytest.raises(BenchError, match="no such model"),
        llama_server.server_process(command, tmp_path / "log", lambda _: None),
    ):
        pass
