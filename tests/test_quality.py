"""The quality study: its plan, its report (of made-up figures, and only here), and a small one from end to end."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

from bench.quality import __main__ as driver
from bench.quality import running
from bench.quality.evaluating import study_texts
from bench.quality.report import collect, write_report
from bench.quality.study import Study, StudyError
from longsight.evals.intervals import Estimate
from longsight.model.markup import DOCUMENT
from longsight.model.tokenizer import FILE, Tokenizer
from longsight.train.config import TrainConfig
from longsight.train.tokenizer import file_hash
from longsight.train.tokenizer import train as learn
from longsight.train.tokens import TokenWriter
from tiny_training import read_log, write_config

STUDY = Path(driver.__file__).with_name("recall.toml")
TEXT_STUDY = STUDY.with_name("text.toml")
ACCURACY = {"dense": 0.90, "MSA from scratch": 0.93, "MSA converted": 0.70, "static": 0.20}
LOSS = {"dense": 2.0, "MSA from scratch": 2.004, "MSA converted": 2.1, "static": 2.5}


@pytest.fixture
def study() -> Study:
    return Study.from_file(STUDY)


def made_up(study: Study, out: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """What finished runs leave behind, with invented figures that differ a little by seed."""
    for run in study.runs():
        if run.seed not in seeds or run.arm.sweep:
            continue
        directory = out / run.directory
        (directory / "model").mkdir(parents=True)
        (directory / "model" / "config.json").write_text("{}")
        loss = LOSS[run.arm.name] + 0.01 * run.seed
        (directory / "log.csv").write_text(f"step,validation\n1,9.9\n2,{loss}\n3,\n")
        parts: list[dict[str, Any]] = []
        for variant in run.arm.evaluate:
            for length in study.evaluation["lengths"]:
                value = ACCURACY[run.arm.name] - 0.01 * run.seed - length / 10**6
                estimate = Estimate(value, value - 0.1, value + 0.1, 20).to_dict()
                part = {"attention": variant.name, "task": "recall", "length": length, "accuracy": estimate}
                parts.append({**part, "part": f"recall at {length}"})
            bucket = {"first": 1, "last": 64, **Estimate(loss, loss, loss, 8).to_dict()}
            parts.append({"attention": variant.name, "part": "loss at 256", "loss": [bucket]})
        (directory / "evals").mkdir()
        (directory / "evals" / "results.json").write_text(json.dumps({"parts": parts}))


def test_the_plan(study: Study) -> None:
    runs = list(study.runs())
    assert len(runs) == 3 * len(study.arms)
    assert len({run.directory for run in runs}) == len(runs)
    assert study.train.exists()
    order = [(run.arm.sweep, run.seed) for run in Study.from_file(TEXT_STUDY).runs()]
    assert order == sorted(order)
    assert {sweep for sweep, _ in order} == {False, True}
    converted = next(run for run in runs if run.arm.name == "MSA converted" and run.seed == 2)
    assert converted.directory == "msa-converted-2"
    assert "run.seed=2" in converted.assignments
    assert 'stage.3.attention="warmup"' in converted.assignments


def test_a_wrong_study_is_refused(tmp_path: Path) -> None:
    text = STUDY.read_text()
    wrong = tmp_path / "wrong.toml"
    for old, new, words in (
        ('baseline = "dense"', 'baseline = "dens"', "'dens'"),
        ("seeds = [0, 1, 2]", "seeds = []", "seeds"),
        ("seeds =", "seed =", "'seed' is not a key"),
        ('baseline = "dense"', "", "baseline is missing"),
        ("trials = 20", "trial = 20", "trial"),
        ('tasks = ["recall"]', 'tasks = ["recal"]', "recal"),
        ('evaluate = ["dense"]', 'evaluate = ["dens"]', "accepted"),
        ("[arms.dense]", "[evaluation.sweep]\ntrials = 3\n[arms.dense]", "evaluation.sweep.trials is not known"),
    ):
        assert old in text
        wrong.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=words):
            Study.from_file(wrong)
    with pytest.raises(StudyError, match="cannot read"):
        Study.from_file(tmp_path / "none.toml")


def test_the_report_says_what_was_measured_and_no_more(study: Study, tmp_path: Path) -> None:
    made_up(study, tmp_path / "runs")
    record = collect(study, tmp_path / "runs")
    text = write_report(study, record, tmp_path / "docs").read_text()
    assert "from 12 of 21 runs" in text
    assert "| MSA from scratch: loss within 0.5% of dense | +0.20% | yes |" in text
    assert "| MSA converted: loss within 0.5% of dense | +4.98% | **no** |" in text
    assert "| MSA from scratch: recall at most one point below dense at every length | +0.030 | yes |" in text
    assert "| MSA converted: recall at most one point below dense at every length | -0.200 | **no** |" in text
    assert "| static: recall falls behind dense by 10 points somewhere | -0.700 | yes |" in text
    assert "| dense | 3 | 2.0100 [2.0000, 2.0200] |" in text
    assert "| MSA converted | 3 | 2.1100 [2.1000, 2.1200] | 0.1000 [0.1000, 0.1000] |" in text
    assert "16K (64x)" in text
    assert "(images/quality-recall-accuracy.png)" in text
    assert "MSA from scratch, evaluated k=8" in text
    assert "k 2, block 16" not in text  # no run, no row
    assert "| positions | 1 to 63 |" in text
    assert "| dense | 7.463 |" in text  # exp(2.01)
    for name in ("quality-recall-accuracy.png", "quality-recall-loss.png"):
        assert image.imread(tmp_path / "docs" / "images" / name).std() > 0.02


def test_a_report_of_nothing_is_open(study: Study, tmp_path: Path) -> None:
    text = write_report(study, collect(study, tmp_path), tmp_path).read_text()
    assert "from 0 of 21 runs" in text
    assert "| open |" in text
    assert "yes" not in text
    made_up(study, tmp_path / "one", seeds=(0,))
    text = write_report(study, collect(study, tmp_path / "one"), tmp_path).read_text()
    assert "| MSA converted | 1 | 2.1000 | 0.1000 |" in text  # one seed has no interval


def pretend(monkeypatch: pytest.MonkeyPatch, run: Callable[[list[str]], int]) -> None:
    """Instead of programs, `run` with their command, which returns the exit code."""

    def instead(self: running.Processes, command: Sequence[str], log: Path, threads: int) -> int:
        return run([*command])

    monkeypatch.setattr(running.Processes, "run", instead)


def finish(command: list[str]) -> None:
    out = Path(command[command.index("--out") + 1])
    (out / "model").mkdir()
    (out / "model" / "config.json").write_text("{}")


def test_goes_on_where_it_stopped(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished runs are not trained again, failed ones are kept as such until they are retried."""
    trained: list[list[str]] = []
    evaluated: list[str] = []

    def run(command: list[str]) -> int:
        if "train" not in command:
            evaluated.append(command[4])
            return 0
        trained.append(command)
        if "static" in command[command.index("--out") + 1]:
            return 1
        finish(command)
        return 0

    pretend(monkeypatch, run)
    running.carry_out(study, tmp_path)
    assert len(trained) == len(list(study.runs()))
    assert all("--resume" in command for command in trained)
    assert evaluated == [run.directory for run in study.runs() if run.arm.name != "static"]
    record = collect(study, tmp_path)
    assert [run["state"] for run in record["runs"]].count("failed") == 3
    assert record["runs"][3]["reason"] == "exit code 1: nothing was said"
    trained.clear()
    running.carry_out(study, tmp_path)
    assert trained == []
    pretend(monkeypatch, lambda _: -15)
    with pytest.raises(StudyError, match="goes on"):
        running.carry_out(study, tmp_path / "other")
    assert [run["state"] for run in collect(study, tmp_path / "other")["runs"]] == ["missing"] * len(list(study.runs()))
    pretend(monkeypatch, run)
    running.carry_out(study, tmp_path, retry=True)
    assert [command[command.index("--restart") - 1] for command in trained] == [
        str(tmp_path / f"static-{seed}") for seed in range(3)
    ]


def test_two_runs_side_by_side(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more, never fewer while there are two; when one is stopped, none begins after it."""
    together, trained = threading.Barrier(2), list[str]()

    def run(command: list[str]) -> int:
        if "train" in command:
            trained.append(command[command.index("--out") + 1])
            if len(trained) <= 20:  # 21 runs: the last is alone
                together.wait(20)
            finish(command)
        return 0

    pretend(monkeypatch, run)
    running.carry_out(study, tmp_path, jobs=2, threads=1)
    assert sorted(trained) == sorted(str(tmp_path / run.directory) for run in study.runs())
    trained.clear()

    def stopped(command: list[str]) -> int:
        trained.append(command[0])
        return -15

    pretend(monkeypatch, stopped)
    with pytest.raises(StudyError, match="was stopped"):
        running.carry_out(study, tmp_path / "stopped", jobs=2, threads=1)
    assert len(trained) < 21


def test_programs_end_together(tmp_path: Path) -> None:
    processes, codes = running.Processes(), list[int]()
    script = "import sys, time; print(sys.argv[1], flush=True); time.sleep(60)"
    command, log = [sys.executable, "-c", script, "begun"], tmp_path / "log"
    log.touch()
    thread = threading.Thread(target=lambda: codes.append(processes.run(command, log, 1)))
    thread.start()
    while thread.is_alive() and "begun" not in log.read_text():
        thread.join(0.01)
    processes.end()
    thread.join(20)
    assert codes == [-15]
    assert processes.run(command, log, 1) == -15  # none begins


def test_the_study_on_text(tmp_path: Path) -> None:
    """All of its runs can be read, with budgets of the same tokens; sweeps are asked less."""
    study = Study.from_file(TEXT_STUDY)
    budgets = {"k 4, block 16": 64, "k 16, block 16": 256, "k 8, block 32": 256}
    stages = set()
    for run in study.runs():
        config = TrainConfig.from_file(study.train, run.assignments)
        model = config.model.config
        assert model.topk_blocks * model.block_size == budgets.get(run.arm.name, 128)
        stages.add(tuple((s.steps, s.batch, s.length, tuple(s.sources.items())) for s in config.stages))
        for stage in config.stages:
            policy = stage.static
            assert policy is None or policy.window + 1 + policy.random == model.topk_blocks
        own, *others = study.evaluations(run.arm)
        assert own.lengths == tuple(n * study.training_length for n in (1, 4, 16, 64))
        assert len(own.tasks) == (3 if run.arm.sweep else 8)
        assert all(len(other.tasks) == 3 and not other.loss_length for other in others)
    assert len(stages) == 1
    assert [study.evaluations(study.arms[0])[0].trials_at(n) for n in (512, 2048, 8192, 32768)] == [128, 32, 8, 5]


HELD_OUT = """
train = "training.toml"
prepare = "make some text"
seeds = [0]
baseline = "dense"
[evaluation]
tasks = ["single"]
held_out = "held-out"
training_length = 64
lengths = [64]
loss_length = 600
[arms.dense]
attention = ["dense"]
evaluate = ["dense"]
"""


def test_prompts_are_made_of_held_out_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = TEXT_STUDY.parents[2] / "examples/text.toml"
    text = config.read_text().replace("../recipes/embedded/work/tokens", "tokens").replace("4096", "300")
    (tmp_path / "training.toml").write_text(text.replace("part = [0.98, 1.0]", "part = [0.9, 1.0]"))
    (tmp_path / "study.toml").write_text(HELD_OUT)
    assert driver.main([str(tmp_path / "study.toml"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert f"there is no token file {tmp_path / 'tokens'}; make it:" in said
    assert "make some text" in said
    learn(["words"], 300, (DOCUMENT,)).save(str(tmp_path / FILE))
    tokenizer = Tokenizer.from_file(tmp_path / FILE)
    with TokenWriter(tmp_path / "tokens") as writer:
        writer.begin(300, file_hash(tmp_path / FILE))
        for number in range(40):
            writer.add(tokenizer.encode(f"{DOCUMENT}Text {number}. {'More. ' * (300 if number % 2 else 1)}"))
    (tmp_path / FILE).rename(tmp_path / "tokens" / FILE)
    study = Study.from_file(tmp_path / "study.toml")
    study.check_data()
    texts = study_texts(study)
    assert len(texts.documents) == 4
    assert all(document.pieces[0].startswith("Text ") for document in texts.documents)
    assert texts.loss == [document for document in texts.documents if len(document.pieces) > 100]
    (tmp_path / "study.toml").write_text(HELD_OUT.replace('held_out = "held-out"', 'held_out = "copying"'))
    with pytest.raises(StudyError, match="held_out is 'copying'; token files: text, held-out"):
        Study.from_file(tmp_path / "study.toml").check_data()


REAL = """
train = "tiny.toml"
seeds = [0]
baseline = "dense"
set = [
  "model.vocab_size=1153",
  "data.pairs.vocab_fillers=64", "data.pairs.vocab_values=64", "data.pairs.vocab_keys=1024",
  "stage.dense.steps=2", "stage.warm-up.steps=2", "stage.sparse.steps=2",
]
[evaluation]
tasks = ["recall"]
training_length = 64
lengths = [64, 128]
trials = 2
[arms.dense]
attention = ["dense", "dense", "dense"]
evaluate = ["dense"]
[arms.MSA]
attention = ["dense", "warmup", "sparse"]
evaluate = ["configured"]
[arms.gated]
attention = ["dense", "dense", "dense"]
set = ["stage.dense.gate={accuracy=1.0, window=1}"]
evaluate = ["dense"]
"""


def test_a_small_study_from_training_to_the_page(tmp_path: Path) -> None:
    """Trained, evaluated and reported for real; what is finished or failed is not touched when the command is given
    again."""
    write_config(tmp_path)
    (tmp_path / "small.toml").write_text(REAL)
    arguments = [str(tmp_path / "small.toml"), "--out", str(tmp_path / "out"), "--docs", str(tmp_path / "docs")]
    assert driver.main([*arguments, "--threads", "1", "--jobs", "2"]) == 0
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert [run["state"] for run in record["runs"]] == ["trained", "trained", "failed"]
    assert "without what its gate asks for" in record["runs"][2]["reason"]
    for run in record["runs"][:2]:
        assert run["validation"] == pytest.approx(math.log(1153), abs=1)
        assert [part["part"] for part in run["parts"]] == ["recall at 64", "recall at 128"]
    modes = [[bool(row["kl_0"]) for row in read_log(tmp_path / "out" / f"{arm}-0")] for arm in ("dense", "msa")]
    assert modes == [[False] * 6, [False] * 2 + [True] * 4]
    page = (tmp_path / "docs" / "quality-small.md").read_text()
    assert "from 2 of 3 runs" in page
    assert "| MSA: loss within 0.5% of dense |" in page
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != "record.json"]
    times = {path: path.stat().st_mtime_ns for path in files}
    assert driver.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == times
