"""Checkpoints of a run: everything the next step depends on, one file a save, whole or absent.

Data are a pure function of the step, so no place in the data is kept. A file is written under another name, flushed to
the disk and then renamed: a process killed at any moment leaves the last whole checkpoint the newest.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from longsight.model.errors import CheckpointError

_NAME = re.compile(r"step-(\d+)\.pt")


def file_of(directory: Path, step: int) -> Path:
    """The file of the checkpoint taken after `step` steps."""
    return directory / f"step-{step:08d}.pt"


def list_checkpoints(directory: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def latest(directory: Path) -> Path | None:
    """The newest whole checkpoint, None if there is none."""
    found = list_checkpoints(directory)
    return found[-1] if found else None


def save(path: Path, state: Mapping[str, Any], keep: int) -> None:
    """Write `state` (tensors, numbers, texts, lists, dicts), then delete all but the newest `keep` files beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(file: BinaryIO) -> None:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:
            # After a write that failed, torch fails again when it ends the archive, and hides why.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    replace(path, write)
    for old in list_checkpoints(path.parent)[:-keep]:
        old.unlink()


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU. Nothing in the file is executed. Raises CheckpointError if it is damaged."""
    try:
        return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is no readable checkpoint of a training run: {error}") from error


def clear(directory: Path) -> None:
    """Delete every checkpoint, and what a killed process left half-written."""
    for path in [*list_checkpoints(directory), *directory.glob("*.partial")]:
        path.unlink()


def replace(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Give `path` new contents in one step: readers see the old file or the new one, also after a power cut.

    Raises OSError naming `path`; what a full disk could not take is deleted.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error
    if os.name == "nt":  # directories cannot be opened there
        return
    entry = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


def rng_state() -> dict[str, Any]:
    """The generators a step could draw from."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
