"""The whole chain, small: generated data, dense, warm-up and sparse training, export, and answers from texts many times
longer than those of training, read in chunks by the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longsight import LLM, SamplingParams
from longsight.cli.main import main
from longsight.train.batch import IGNORED
from longsight.train.recall import Needles, Vocabulary
from tiny_training import Rows, read_log

RECIPE = Path(__file__).parent.parent / "examples" / "recall.toml"
SHORTER = {
    "stage.induction.steps": 120,
    "stage.induction.gate.accuracy": 0.6,
    "stage.lengthen.steps": 20,
    "stage.lengthen.length": 128,
    "stage.warm-up.steps": 40,
    "stage.warm-up.length": 128,
    "stage.sparse.steps": 25,
    "stage.sparse.length": 128,
}
TEXT, TEXTS, QUESTIONS = 1024, 4, 8  # eight times the longest row of training
CHANCE = 1 / 64


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recall")
    changes = [part for key, value in SHORTER.items() for part in ("--set", f"{key}={value}")]
    assert main(["train", str(RECIPE), "--out", str(out), "--threads", "1", *changes]) == 0
    return out


def mean(rows: Rows, column: str) -> float:
    return float(np.mean([float(row[column]) for row in rows]))


def test_it_learns_to_look_things_up(run: Path) -> None:
    stages: dict[str, Rows] = {}
    for row in read_log(run):
        stages.setdefault(row["stage"], []).append(row)
    induction, warmup, sparse = stages["induction"], stages["warm-up"], stages["sparse"]
    assert mean(induction[:10], "accuracy") < 2 * CHANCE
    assert mean(induction[-10:], "accuracy") > 0.6
    for layer in (0, 1):
        kl, captured = f"kl_{layer}", f"captured_{layer}"
        assert mean(warmup[-5:], kl) < 0.7 * mean(warmup[:5], kl)
        assert mean(warmup[-5:], captured) > mean(warmup[:5], captured) + 0.03
        assert mean(sparse[-5:], kl) < mean(warmup[-5:], kl)
    # What dense attention had learned survives the change to a few blocks.
    assert mean(sparse[-10:], "accuracy") > mean(warmup[-10:], "accuracy") - 0.1


def test_the_exported_model_answers_from_far_longer_texts(run: Path) -> None:
    task = Needles(Vocabulary(), queries=QUESTIONS, spread=32)
    prompts, answers = [], []
    for seed in range(TEXTS):
        text = task.sample(np.random.default_rng(seed), TEXT)
        for at in (text.targets != IGNORED).nonzero()[0]:
            prompts.append(text.tokens[: at + 1].tolist())
            answers.append(int(text.targets[at]))
    with LLM(run / "model", chunk_tokens=192, max_model_len=TEXT + 64) as llm:
        outputs = llm.generate(prompts, SamplingParams(max_tokens=1, temperature=0), use_tqdm=False)
    right = [output.outputs[0].token_ids == [answer] for output, answer in zip(outputs, answers, strict=True)]
    assert len(right) == TEXTS * QUESTIONS
    assert sum(right) / len(right) > 0.5  # chance is 0.016


def test_generate_reads_the_words_of_the_task(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "k7 v11 f3 f4 k9 v30 k20 v5 f1 f2 k1000 v63 f5 f6 k9"
    arguments = ["--prompt", prompt, "--max-tokens", "1", "--temperature", "0"]
    assert main(["generate", str(run / "model"), *arguments]) == 0
    assert capsys.readouterr().out == " v30\n"
