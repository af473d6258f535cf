"""The embedded model from nothing, in one command: `python -m recipes.embedded [--threads N]`.

Downloads the packages, makes corpus and tokenizer, trains as train.toml says, and puts the model where
`longsight serve` and `longsight demo` find it. What is there already is kept: run again after an interruption, it goes
on. The hours that each step took are printed. Then judge the model: `python -m recipes.embedded.trials`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from longsight.model.built_in import EMBEDDED_DIR
from longsight.model.constructed import FILES
from longsight.model.tokenizer_config import TOKENIZER_CONFIG
from longsight.train.config import TrainConfig
from recipes.embedded.corpus import HERE, WORK

TRAIN = HERE / "train.toml"


def run(name: str, made: Path, arguments: Sequence[str]) -> None:
    """A step as a program of its own, if what it makes is missing. Raises CalledProcessError."""
    if made.exists():
        print(f"{name}: {made} is there")
        return
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", *arguments], check=True)
    print(f"{name}: {(time.monotonic() - began) / 3600:.2f} hours")


def ship(model: Path, target: Path) -> None:
    """Copy what a served model needs. It answers without sampling: what it is asked for is to be copied exactly."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (*FILES, TOKENIZER_CONFIG):
        shutil.copyfile(model / name, target / name)
    generation = target / "generation_config.json"
    settings = json.loads(generation.read_text(encoding="utf-8")) | {"do_sample": False}
    generation.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m recipes.embedded",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", help="CPU threads of the training; default: all cores")
    options = parser.parse_args(arguments)
    model = TrainConfig.from_file(TRAIN).run.out / "model"
    try:
        run("corpus", WORK / "corpus.jsonl", ["recipes.embedded.corpus"])
        run("tokenizer", WORK / "even", ["recipes.embedded.tokenizer"])
        run("code", WORK / "code", ["recipes.embedded.code"])
        threads = ["--threads", options.threads] if options.threads else []
        run("training", model, ["longsight.cli.main", "train", str(TRAIN), "--resume", *threads])
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    ship(model, EMBEDDED_DIR)
    print(f"the model is in {EMBEDDED_DIR}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
