"""A step recorded once and run again with new contents: one call into the kernels instead of one per operator.

Python around sixty kernel calls costs a decode step of a small model a quarter of its time. While a tape records, every
kernel call runs as usual and is noted with its arguments. A replay runs the same calls on the same memory, so the
caller writes new contents into the tensors the step read (token rows, positions, lengths, block table) and reads its
results where they were. This is sound only if nothing but kernels computed in between: recording refuses any other
operator, so a step that cannot be replayed is found when it is recorded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longsight.ops import kernels
from longsight.ops.errors import UnsupportedError

# Operators that give memory or another view of it, and compute nothing.
_INERT = frozenset(
    {"empty", "empty_like", "empty_strided", "view", "_unsafe_view", "split", "split_with_sizes", "slice"}
    | {"unsqueeze", "squeeze", "select", "alias", "detach", "expand", "as_strided", "transpose", "t"}
)


class Tape:
    """The calls of one step, and the memory they work on."""

    def __init__(self, calls: Sequence[tuple[str, ctypes.Structure, tuple[Tensor, ...]]]) -> None:
        places = {name: i for i, name in enumerate(kernels.CALLS)}
        self._kept = [(args, outputs) for _, args, outputs in calls]  # what the calls point to
        self._names = [name for name, _, _ in calls]
        self._calls = (kernels.Call * len(calls))(
            *(kernels.Call(places[name], ctypes.addressof(args)) for name, args, _ in calls)
        )

    def __len__(self) -> int:
        return len(self._names)

    def only(self, names: Container[str]) -> Tape:
        """The tape of some kernels' calls, for measuring them: their inputs are what the last full run left."""
        chosen = [i for i, name in enumerate(self._names) if name in names]
        return Tape([(self._names[i], *self._kept[i]) for i in chosen])

    def replay(self) -> None:
        """Run the calls again. Raises what they would raise."""
        failed = ctypes.c_int64(0)
        status = kernels.library().ls_run(self._calls, len(self._names), ctypes.byref(failed))
        if status:
            kernels.check(self._names[failed.value], self._kept[failed.value][0], status)


@contextmanager
def record() -> Iterator[Callable[[], Tape]]:
    """Note every kernel call inside the block; the function that it yields then makes the tape.

    Raises UnsupportedError at the first torch operator that computes something.
    """
    calls: list[tuple[str, ctypes.Structure, tuple[Tensor, ...]]] = []
    token = kernels.recording.set(calls)
    try:
        with _OnlyKernels():  # type: ignore[no-untyped-call]
            yield lambda: Tape(calls)
    finally:
        kernels.recording.reset(token)


class _OnlyKernels(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler to keep it away from here: a second and 70 MB at the first token.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        name = func.overloadpacket.__name__
        if name not in _INERT:
            raise UnsupportedError(f"a recorded step may not compute outside the kernels, and this one calls {name}")
        return func(*args, **(kwargs or {}))
