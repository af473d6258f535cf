"""The training loop: exact resume after kill -9, gates, errors, and several processes that equal one."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from matplotlib import image
from safetensors.torch import load_file

from live_server import wait_for
from longsight.cli.main import main
from longsight.locked import lock_directory
from longsight.model import CheckpointError, ConfigError
from longsight.train import checkpoint
from longsight.train.config import Gate, TrainConfig
from longsight.train.gate import GateWatch
from longsight.train.loop import Trainer
from longsight.train.parallel import Processes
from tiny_training import STEPS, furthest, read_log, write_config

TRAIN = ["-m", "longsight.cli.main", "train"]
ADAMW = [f"optimizer.{name}={{kind='adamw',lr=2e-3,eps=1e-3}}" for name in ("matrices", "index_matrices")]
ADAMW += ["stage.sparse.steps=4"]
ADAMW += [f"optimizer.{name}={{lr=2e-3,eps=1e-3}}" for name in ("embedding", "head", "norms", "index_norms", "router")]

ONE_EACH = [f"stage.{number}.steps=1" for number in (1, 2, 3)]


def options(out: Path, assignments: Sequence[str] = ()) -> list[str]:
    return ["--out", str(out), "--threads", "1", *(part for a in assignments for part in ("--set", a))]


def train(config: Path, out: Path, *flags: str, assignments: Sequence[str] = ()) -> int:
    return main(["train", str(config), *options(out, assignments), *flags])


@contextmanager
def started(config: Path, out: Path, *flags: str, steps: int) -> Iterator[subprocess.Popen[str]]:
    """A training process that has logged at least `steps` steps and still runs."""
    command = [sys.executable, *TRAIN, str(config), *options(out), *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(read_log(out)) >= steps or process.poll() is not None, 60)
        assert process.poll() is None, "it was over before it could be interrupted"
        yield process


def torchrun(config: Path, out: Path, *flags: str, assignments: Sequence[str] = ()) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launch, *TRAIN, str(config), *options(out, assignments), *flags]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ran.returncode == 0, ran.stderr[-4000:]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert train(config, out) == 0
    return out


# --- what a run leaves ---


def test_the_log_holds_a_row_a_step_with_the_figures_of_its_mode(whole: Path) -> None:
    rows = read_log(whole)
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert [row["stage"] for row in rows] == ["dense"] * 4 + ["warm-up"] * 4 + ["sparse"] * 12
    assert [bool(row["kl_0"] and row["kl_1"]) for row in rows] == [False] * 4 + [True] * 16
    assert [bool(row["captured_0"]) for row in rows] == [False] * 4 + [True] * 4 + [False] * 12
    assert [int(row["step"]) for row in rows if row["validation"]] == [
        4,
        5,
        8,
        10,
        15,
        20,
    ]  # every 5th, and stages' ends
    assert float(rows[0]["loss"]) == pytest.approx(math.log(97), abs=0.3)
    assert all(0 < float(row["captured_1"]) <= 1 for row in rows[4:8])
    assert float(rows[0]["norm_index"]) == 0 < float(rows[5]["norm_index"])
    assert float(rows[4]["lr_matrices"]) == pytest.approx(0.01 / 3)  # the first of two steps of warm-up
    assert float(rows[-1]["lr_matrices"]) == pytest.approx(0.001)  # the end of the cosine


def test_tensorboard_and_the_picture_show_the_same(whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(int(row["step"]), pytest.approx(float(row["loss"]), rel=1e-6)) for row in read_log(whole)]
    assert len(events.Scalars("kl/1")) == 16
    height, width, _ = image.imread(whole / "curves.png").shape
    assert height > 800
    assert width > 800


def test_the_model_goes_on_from_its_export(whole: Path, config: Path, tmp_path: Path) -> None:
    text = config.read_text()
    start, end = text.index("[model]"), text.index("[tokenizer]")
    again = tmp_path / "again.toml"
    again.write_text(text[:start] + f'[model]\npath = "{whole}/model"\n' + text[end:])
    assert train(again, tmp_path / "out", assignments=["stage.2.warmup=0", *ONE_EACH]) == 0
    assert float(read_log(tmp_path / "out")[0]["loss"]) < 4.4 < float(read_log(whole)[0]["loss"])
    assert (tmp_path / "out" / "model" / "tokenizer.json").read_bytes() == (
        whole / "model" / "tokenizer.json"
    ).read_bytes()


def test_routers_are_balanced(whole: Path) -> None:
    saved = checkpoint.load(checkpoint.file_of(whole / "checkpoints", STEPS))
    bias = saved["network"]["layers.1.block_sparse_moe.e_score_correction_bias"]
    assert bias.abs().max() > 0.5e-3
    assert (bias.abs() <= STEPS * 1e-3 + 1e-6).all()


# --- resuming ---


def test_killed_and_resumed_is_as_if_never_killed(config: Path, whole: Path, tmp_path: Path) -> None:
    with started(config, tmp_path, steps=5) as process:
        process.kill()
    done = len(read_log(tmp_path))
    assert 5 <= done < STEPS
    with (tmp_path / "log.csv").open("ab") as file:
        file.write(b"6,warm-up,2,1.2")  # what a killed process may leave
    (tmp_path / "checkpoints" / "step-00000099.pt.partial").write_bytes(b"half a checkpoint")
    assert train(config, tmp_path, "--resume") == 0
    assert read_log(tmp_path) == read_log(whole)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


def test_control_c_saves_and_says_how_to_go_on(config: Path, whole: Path, tmp_path: Path) -> None:
    with started(config, tmp_path, steps=2) as process:
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    done = len(read_log(tmp_path))
    assert f"stopped after step {done}" in told
    assert f"longsight train {config} --out {tmp_path} --resume" in told
    assert checkpoint.latest(tmp_path / "checkpoints") == checkpoint.file_of(tmp_path / "checkpoints", done)
    assert train(config, tmp_path, "--resume") == 0
    assert read_log(tmp_path) == read_log(whole)


def test_a_resumed_run_says_that_it_is_another(
    config: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, tmp_path, assignments=["stage.sparse.gate={accuracy=1.0}"]) == 1
    assert "accuracy" in capsys.readouterr().err
    assert train(config, tmp_path, "--resume") == 0
    assert "the configuration is not the one" in capsys.readouterr().err
    assert read_log(tmp_path) == read_log(whole)
    assert train(config, tmp_path, "--resume", assignments=["stage.warm-up.name='other'"]) == 1
    assert "has been through the stages ['dense', 'warm-up', 'sparse']" in capsys.readouterr().err


def test_only_so_many_checkpoints_are_kept(config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path, assignments=["run.keep=2"]) == 0
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")] == [
        "step-00000018.pt",
        "step-00000020.pt",
    ]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = checkpoint.file_of(tmp_path, 7)
    checkpoint.save(path, {"a": torch.arange(5)}, keep=2)
    assert torch.equal(checkpoint.load(path)["a"], torch.arange(5))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.load(path)


def test_what_is_no_checkpoint_of_a_run_is_not_resumed(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(checkpoint.file_of(tmp_path / "checkpoints", 3), {"network": {}}, keep=2)
    assert train(config, tmp_path, "--resume") == 1
    assert "step-00000003.pt has format None; this version reads" in capsys.readouterr().err


def test_a_full_disk_is_said_and_leaves_what_was_saved_before(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint.file_of(tmp_path / "checkpoints", 6)
    path.parent.mkdir()
    assert Path("/dev/full").is_char_device()
    full = [file.with_name(f"{file.name}.partial") for file in (path, tmp_path / "curves.png")]
    for file in full:
        file.symlink_to("/dev/full")
    assert train(config, tmp_path) == 1
    assert f"No space left on device: '{path}'" in capsys.readouterr().err
    assert not full[0].is_symlink()
    last = checkpoint.latest(path.parent)
    assert last == checkpoint.file_of(path.parent, 4)  # the end of the stage before
    assert checkpoint.load(last)["place"]["step"] == 4


# --- the output directory ---


def test_an_earlier_run_is_neither_mixed_in_nor_lost(
    config: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["stage.2.warmup=0", *ONE_EACH]
    assert train(config, tmp_path, assignments=short) == 0
    mine = tmp_path / "notes.txt"
    mine.write_text("kept")
    assert train(config, tmp_path, assignments=short) == 1
    assert "--resume goes on with it, --restart deletes it" in capsys.readouterr().err
    assert train(config, tmp_path, "--restart", assignments=[*short, "run.seed=1"]) == 0
    rows = read_log(tmp_path)
    assert len(rows) == 3
    assert rows[0]["loss"] != read_log(whole)[0]["loss"]
    assert mine.read_text() == "kept"


def test_one_run_at_a_time(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lock_directory(tmp_path):
        assert train(config, tmp_path) == 1
    assert f"{tmp_path} is in use by another training run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("seed=1", "expected section.key=value"),
        ("run.seed", "expected section.key=value"),
        ("run.seed=-1", "run.seed is -1"),
        ("run.sead=1", "run.sead = 1 is not known"),
        ("stage.spares.steps=3", "no entry 'spares'; there are ['dense', 'warm-up', 'sparse']"),
        ("stage.4.steps=3", "no entry '4'"),
        ("stage.steps=3", "say which entry, by name or number"),
        ("stage.steps.x=3", "no entry 'steps'"),
        ("run.seed.x=3", "run.seed is"),
    ],
)
def test_a_wrong_assignment_is_named(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], assignment: str, told: str
) -> None:
    assert train(config, tmp_path, assignments=["run.seed=0", assignment]) == 1
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- gates and errors ---


def test_a_gate_can_end_a_stage_early(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = "stage.warm-up.gate={captured=0.1, window=2, early=true}"
    assert train(config, tmp_path, assignments=[gate]) == 0
    assert [row["stage"] for row in read_log(tmp_path)].count("warm-up") == 2
    assert "stage 'warm-up' ended early, after 2 of 4 steps: its gate is open" in capsys.readouterr().err


def test_a_missed_gate_stops_the_run_or_is_said(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = "stage.warm-up.gate={captured=0.999, window=3, required=%s}"
    assert train(config, tmp_path, assignments=[gate % "true"]) == 1
    told = capsys.readouterr().err
    assert "captured mass" in told
    assert "in layer 0 where 0.999 is asked for" in told
    assert str(checkpoint.file_of(tmp_path / "checkpoints", 8)) in told
    assert len(read_log(tmp_path)) == 8
    assert train(config, tmp_path, "--resume", assignments=[gate % "false"]) == 0
    assert "WARNING: stage 'warm-up' ended with its gate shut" in capsys.readouterr().err
    assert len(read_log(tmp_path)) == STEPS


def test_a_gate_reads_running_means() -> None:
    nan = math.nan
    watch = GateWatch(Gate(captured=0.9, accuracy=0.5, window=3, early=True))
    for accuracy, captured in ((0.9, [nan, 0.99]), (0.9, [nan, 0.99])):
        watch.add(accuracy, captured)
        assert watch.missing()  # too few steps
    watch.add(0.0, [nan, 0.8])
    assert watch.opened
    assert GateWatch(watch.gate, watch.history).opened  # as after a resume
    watch.add(0.0, [nan, 0.8])
    assert [told.split()[0] for told in watch.missing()] == ["accuracy", "captured"]


def test_a_loss_that_is_no_number_stops_the_run(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, tmp_path, assignments=["stage.warm-up.optimizer.head.lr=1e38", "optimizer.clip=1e38"]) == 1
    told = capsys.readouterr().err
    last = checkpoint.latest(tmp_path / "checkpoints")
    assert last is not None
    assert "stage 'warm-up'" in told
    assert f"the last good checkpoint is {last}" in told
    assert all(torch.isfinite(x).all() for x in checkpoint.load(last)["network"].values())


def test_a_stage_keeps_as_many_blocks_as_it_says(config: Path, whole: Path, tmp_path: Path) -> None:
    stages = [stage.name for stage in TrainConfig.from_file(config).stages]
    assert train(config, tmp_path, assignments=[f"stage.{stages[-1]}.topk_blocks=3"]) == 0
    ours, theirs = ([row["loss"] for row in read_log(out) if row["stage"] == stages[-1]] for out in (tmp_path, whole))
    assert ours[0] != theirs[0]
    before = [[row["loss"] for row in read_log(out) if row["stage"] != stages[-1]] for out in (tmp_path, whole)]
    assert before[0] == before[1]


# --- one step in other ways ---


@pytest.mark.parametrize("change", ["run.checkpointing=true", "run.save_every=5"])
def test_the_same_bits_whatever_is_kept(config: Path, whole: Path, tmp_path: Path, change: str) -> None:
    """Activation checkpointing keeps the KL and its gradients too: norm_index and the later losses are the same."""
    assert train(config, tmp_path, assignments=[change]) == 0
    assert read_log(tmp_path) == read_log(whole)


def test_micro_batches_add_up(config: Path, tmp_path: Path) -> None:
    for micro in (1, 3, 4):
        changes = [*ADAMW, *(f"stage.{i}.micro={micro}" for i in (1, 2, 3))]
        assert train(config, tmp_path / str(micro), assignments=changes) == 0
    rows = {micro: read_log(tmp_path / str(micro)) for micro in (1, 3, 4)}
    assert furthest(rows[1], rows[4]) < 2e-5
    assert furthest(rows[3], rows[4]) < 2e-5


def test_bf16_computes_on_fp32_masters(config: Path, whole: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path, assignments=["run.precision='bf16'"]) == 0
    assert 1e-5 < furthest(read_log(tmp_path), read_log(whole), ("loss",)) < 0.03
    saved = checkpoint.load(checkpoint.file_of(tmp_path / "checkpoints", STEPS))
    assert {tensor.dtype for tensor in saved["network"].values()} == {torch.float32}


# --- several processes ---


@pytest.fixture(scope="module")
def alone(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with an optimiser that does not amplify rounding."""
    out = tmp_path_factory.mktemp("alone")
    assert train(config, out, assignments=ADAMW) == 0
    return out


def as_it_was(run: Path, out: Path, step: int) -> None:
    """Copy a run's output as of a checkpoint it had."""
    shutil.copytree(run, out, dirs_exist_ok=True)
    for path in checkpoint.list_checkpoints(out / "checkpoints"):
        if path > checkpoint.file_of(out / "checkpoints", step):
            path.unlink()


def test_two_processes_have_the_losses_of_one(config: Path, alone: Path, tmp_path: Path) -> None:
    torchrun(config, tmp_path, assignments=[*ADAMW, "stage.2.micro=1"])
    assert furthest(read_log(tmp_path), read_log(alone)) < 2e-5
    ours, theirs = (load_file(out / "model" / "model.safetensors") for out in (tmp_path, alone))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4


def test_two_processes_that_share_the_weights_go_on_where_one_was(config: Path, alone: Path, tmp_path: Path) -> None:
    as_it_was(alone, tmp_path, 3)
    torchrun(config, tmp_path, "--resume", assignments=[*ADAMW, "stage.2.micro=1", "run.sharding='fsdp'"])
    rows, expected = read_log(tmp_path), read_log(alone)
    assert rows[:3] == expected[:3]
    assert rows[3:] != expected[3:]  # another order of sums: these are steps of its own
    assert furthest(rows, expected) < 2e-5


def test_muon_trains_shared_weights(config: Path, whole: Path, tmp_path: Path) -> None:
    as_it_was(whole, tmp_path, 15)
    torchrun(config, tmp_path, "--resume", assignments=["run.sharding='fsdp'"])
    rows, expected = read_log(tmp_path), read_log(whole)
    assert rows[15:] != expected[15:]
    # Its orthogonalisation is in bf16, which makes 1e-3 of the last bits of a gradient.
    assert furthest(rows, expected, ("loss", "validation", "kl_0", "kl_1")) < 3e-3


def test_a_step_too_small_for_the_processes_is_known_at_once(config: Path) -> None:
    read = TrainConfig.from_file(config, ["stage.3.batch=2"])
    with pytest.raises(ConfigError, match="batch of stage 'sparse' is 2; 3 processes need at least 3"):
        Trainer(read, Processes(0, 3))


def test_a_step_from_python(config: Path, whole: Path) -> None:
    trainer = Trainer(TrainConfig.from_file(config))
    rows = [trainer.step(), trainer.step()]
    assert [repr(row.loss) for row in rows] == [row["loss"] for row in read_log(whole)[:2]]


def test_a_configuration_from_python(config: Path) -> None:
    read = TrainConfig.from_file(config, ["stage.dense.steps=7", "run.out=some where"])
    assert read.stages[0].steps == 7
    assert read.run.out == Path("some where")
    with pytest.raises(ConfigError, match=r"stage 1\.steps is 0"):
        TrainConfig.from_file(config, ["stage.1.steps=0"])
