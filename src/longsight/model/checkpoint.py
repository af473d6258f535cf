"""Safetensors checkpoints on disk: one file or sharded, memory-mapped, read tensor by tensor. Never pickle."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longsight.model import json_object
from longsight.model.errors import CheckpointError, ConfigError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STORED_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# A mapped file counts as resident memory page by page as it is read. It is mapped anew after this many bytes, so that
# loading never shows (or, on a small machine, needs) the checkpoint's size on top of the packed weights.
REMAP_BYTES = 256 << 20


class Checkpoint:
    """The tensors of a checkpoint directory or of one .safetensors file: names, shapes, dtypes now, data on demand.

    The safetensors library checks every header: its length, the offsets, that they cover the file exactly.
    Raises CheckpointError naming the file for anything missing, truncated or corrupt.
    """

    def __init__(self, path: str | Path) -> None:
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._read_bytes = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.path = Path(path)
        files, index = _files(self.path)
        for file in files:
            self._add(file)
        for name, file in index.items():
            if self._files.get(name) != file:
                raise CheckpointError(f"{self.path / INDEX} puts tensor {name!r} in {file.name}, which lacks it")

    def read(self, name: str) -> Tensor:
        """A tensor that may alias the mapped file: do not write to it, and drop it before reading much more."""
        file = self._files[name]
        if self._read_bytes > REMAP_BYTES:
            self.close()
        try:
            if file not in self._open:
                self._open[file] = safe_open(file, framework="pt")
            tensor: Tensor = self._open[file].get_tensor(name)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"cannot read tensor {name!r} from {file}: {error}") from error
        self._read_bytes += tensor.nbytes
        return tensor

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor in its file."""
        return math.prod(self.shapes[name]) * STORED_DTYPES[self.dtypes[name]].itemsize

    def close(self) -> None:
        """Unmap the files."""
        self._open.clear()
        self._read_bytes = 0

    def _add(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 - the handle is no mapping
                    if name in self._files:
                        raise CheckpointError(f"tensor {name!r} is in both {self._files[name].name} and {file.name}")
                    part = handle.get_slice(name)
                    self._files[name] = file
                    self.shapes[name] = tuple(part.get_shape())
                    self.dtypes[name] = part.get_dtype()
        except FileNotFoundError as error:
            raise CheckpointError(f"{file} does not exist") from error
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error


def _files(path: Path) -> tuple[Iterable[Path], Mapping[str, Path]]:
    """The shards of a checkpoint, and what its index promises."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; expected a directory with config.json and safetensors files")
    if path.is_file():
        return [path], {}
    if (path / SINGLE).exists():
        return [path / SINGLE], {}
    if (path / INDEX).exists():
        return _index(path)
    others = sorted(path.glob("*.safetensors"))
    if len(others) == 1:
        return others, {}
    found = f"; several without an index: {', '.join(f.name for f in others[:4])}" if others else ""
    raise CheckpointError(f"{path} holds neither {SINGLE} nor {INDEX}{found}")


def _index(path: Path) -> tuple[Iterable[Path], Mapping[str, Path]]:
    try:
        weight_map = json_object.load(path / INDEX).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path / INDEX} has no weight_map")
    index = {}
    for name, shard in weight_map.items():
        # A plain file name: an index must not make us read outside its own directory.
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{path / INDEX} puts tensor {name!r} in {shard!r}; expected the name of a .safetensors file beside it"
            )
        index[name] = path / shard
    return sorted(set(index.values())), index
