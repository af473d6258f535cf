"""The two models that come with the package, and what people may write where a model is asked for."""

from __future__ import annotations

from pathlib import Path

from longsight.model.constructed import FILES, constructed_path
from longsight.model.errors import CheckpointError

EMBEDDED, CONSTRUCTED = "embedded", "constructed"
EMBEDDED_DIR = Path(__file__).parent / EMBEDDED  # recipes/embedded writes it


def model_dir(model: str | Path | None = None) -> Path:
    """The checkpoint directory that `model` means.

    None and "embedded": the model trained by recipes/embedded. "constructed": the one written by formula. Anything
    else is the path of a directory; so is a Path, or "./constructed", where a directory has one of these names.
    Raises CheckpointError for a path that is no directory, and for a built-in model whose files are not to be had.
    """
    if model is None or model == EMBEDDED:
        return embedded_path()
    if model == CONSTRUCTED:
        return constructed_path()
    if model == "":
        raise CheckpointError(f"the model's name is empty; {_accepted()}")
    path = Path(model)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory; {_accepted()}")
    return path


def is_built_in(model: str | Path | None) -> bool:
    return model in (None, EMBEDDED, CONSTRUCTED)  # no Path equals a str


def embedded_path() -> Path:
    """The directory of the embedded model, inside the package. Raises CheckpointError if a file of it is missing."""
    missing = [name for name in FILES if not (EMBEDDED_DIR / name).is_file()]
    if missing:
        raise CheckpointError(
            f"the embedded model is incomplete: {EMBEDDED_DIR} has no {', '.join(missing)}; install the package anew, "
            f"or name another model ({CONSTRUCTED}, or a checkpoint directory)"
        )
    return EMBEDDED_DIR


def _accepted() -> str:
    return (
        "expected a directory with config.json and safetensors files, or the name of a built-in model: "
        f"{EMBEDDED} or {CONSTRUCTED}"
    )
