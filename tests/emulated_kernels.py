"""The aarch64 kernels under emulation: tests, torch and the reference run here, each call of a kernel runs there.

`install()` puts an emulated library in the place of the one that ops/kernels.py loads; each call of a kernel goes to
`emulated_kernels.cpp` with the memory that it may touch. conftest.py does so where `LONGSIGHT_TEST_KERNELS=aarch64` is
set. Needs a cross compiler and an emulator (on Debian: `apt install g++-aarch64-linux-gnu qemu-user-static`).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longsight.ops import kernels

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "aarch64"
COMPILER = "aarch64-linux-gnu-g++"
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
SYSROOT = "/usr/aarch64-linux-gnu"  # where the cross compiler's libraries lie


def problem() -> str | None:
    """None if aarch64 kernels can be built and run here, else what is missing."""
    if shutil.which(COMPILER) is None:
        return f"no cross compiler ({COMPILER})"
    if not any(map(shutil.which, EMULATORS)):
        return f"no emulator ({' or '.join(EMULATORS)})"
    return None


def build() -> None:
    """The library as CMakeLists.txt builds it for aarch64, and the program that calls it; what is up to date stays."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja
    target = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={COMPILER}")
    caller = ROOT / "tests" / "emulated_kernels.cpp"
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", *target],
        ["cmake", "--build", str(BUILD)],
        [
            COMPILER,
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fopenmp",
            "-Wl,--no-as-needed",
            "-o",
            str(BUILD / "caller"),
            str(caller),
        ],
    ):
        subprocess.run(command, check=True, env=os.environ | {"PATH": path})


class EmulatedLibrary:
    """What ops/kernels.py asks of the library that it loads. processor: which one is emulated, as qemu names it."""

    def __init__(self, processor: str) -> None:
        emulator = next(name for name in EMULATORS if shutil.which(name))
        self._memory: dict[int, torch.UntypedStorage] = {}
        self._process = subprocess.Popen(
            [emulator, "-cpu", processor, "-L", SYSROOT, str(BUILD / "caller"), str(BUILD / kernels.LIBRARY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Emulated threads that spin take the time of those that work.
            env=os.environ | {"OMP_WAIT_POLICY": "passive"},
        )

    def close(self) -> None:
        self._process.communicate()

    def remember(self, tensor: Tensor) -> None:
        """A kernel may be given this tensor's address. Its memory is kept, so that no address is used twice."""
        storage = tensor.untyped_storage()
        self._memory[storage.data_ptr()] = storage

    def __getattr__(self, name: str) -> Callable[[ctypes.Structure], int]:
        if name not in kernels.CALLS | kernels.TRAINING_CALLS:
            raise AttributeError(name)
        return lambda args: self._call(name, args)

    def ls_run(self, calls: Any, count: int, failed: Any) -> int:
        for i in range(count):
            name = list(kernels.CALLS)[calls[i].kernel]
            status = self._call(name, kernels.CALLS[name].from_address(calls[i].args))
            if status:
                failed._obj.value = i
                return status
        return 0

    def ls_use_isa(self, name: bytes) -> int:
        self._send("ls_use_isa", [name + b"\0"])
        return self._number()

    def ls_screens(self) -> int:
        self._send("ls_screens", [])
        return self._number()

    def ls_isa(self) -> bytes | None:
        return self.ls_usable_isa(0, "ls_isa")

    def ls_usable_isa(self, i: int, name: str = "ls_usable_isa") -> bytes | None:
        self._send(name, [struct.pack("<q", i)])
        size = self._number()
        return None if size < 0 else self._receive(size)

    def _call(self, name: str, args: ctypes.Structure) -> int:
        memory = Memory(args, self._memory)
        self._send(name, memory.buffers, memory.pointers)
        status = self._number()
        for buffer, address in zip(memory.buffers, memory.addresses, strict=True):
            if address is not None:
                answer = self._receive(len(buffer))
                if answer != buffer:
                    ctypes.memmove(address, answer, len(answer))
        return status

    def _send(self, name: str, buffers: list[bytes], pointers: list[tuple[int, int, int, int]] | None = None) -> None:
        assert self._process.stdin is not None
        parts = [struct.pack("<q", len(name)), name.encode(), struct.pack("<q", len(buffers))]
        for buffer in buffers:
            parts += [struct.pack("<q", len(buffer)), buffer]
        parts.append(struct.pack("<q", len(pointers or [])))
        parts += [struct.pack("<4q", *pointer) for pointer in pointers or []]
        self._process.stdin.write(b"".join(parts))
        self._process.stdin.flush()

    def _number(self) -> int:
        return int(struct.unpack("<q", self._receive(8))[0])

    def _receive(self, size: int) -> bytes:
        assert self._process.stdout is not None
        answer = self._process.stdout.read(size)
        assert len(answer) == size, f"the emulated program ended with status {self._process.wait()}"
        return answer


class Memory:
    """What one call may touch.

    buffers: the argument struct, then arrays of pointers and whole storages; addresses: where a storage lies here, None
    for the others; pointers: (which buffer holds it, at which byte, which buffer it points into, at which byte).
    """

    def __init__(self, args: ctypes.Structure, storages: dict[int, torch.UntypedStorage]) -> None:
        self._storages = storages
        self.buffers = [bytes(args)]
        self.addresses: list[int | None] = [None]
        self.pointers: list[tuple[int, int, int, int]] = []
        self._follow(args, 0)

    def _follow(self, args: ctypes.Structure, offset: int) -> None:
        for name, kind, *_ in args._fields_:
            at, value = offset + getattr(type(args), name).offset, getattr(args, name)
            if isinstance(value, ctypes.Structure):
                self._follow(value, at)
            elif isinstance(args, kernels.MoeArgs) and name in ("gate_up", "down"):  # an address for each expert
                addresses = (ctypes.c_int64 * args.experts).from_address(value)
                self.pointers.append((0, at, len(self.buffers), 0))
                self.buffers.append(bytes(addresses))
                self.addresses.append(None)
                holder = len(self.buffers) - 1
                for i, address in enumerate(addresses):
                    self._point(holder, 8 * i, address)
            elif kind is ctypes.c_void_p and value:
                self._point(0, at, value)

    def _point(self, holder: int, at: int, address: int) -> None:
        base = max(base for base in self._storages if base <= address)
        size = self._storages[base].nbytes()
        assert address <= base + size, "a kernel was given an address that lies in no tensor"
        if base not in self.addresses:
            self.buffers.append(ctypes.string_at(base, size))
            self.addresses.append(base)
        self.pointers.append((holder, at, self.addresses.index(base), address - base))


def install() -> None:
    """From now on this process's kernels are emulated ones, on the processor LONGSIGHT_TEST_CPU (default: "max")."""
    build()
    library = EmulatedLibrary(os.environ.get("LONGSIGHT_TEST_CPU", "max"))
    data_ptr = Tensor.data_ptr

    def remembered(tensor: Tensor) -> int:
        library.remember(tensor)
        return data_ptr(tensor)

    Tensor.data_ptr = remembered  # type: ignore[method-assign]
    kernels._load = lambda: library  # type: ignore[assignment, return-value]
