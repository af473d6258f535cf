"""Systems that the tests do not run on, as far as they can be imitated: what Windows and macOS lack is taken away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from longsight.engine import kv_dir

# Everything is imported once, so that other libraries see the system that they were installed for; then longsight
# alone is imported anew on a system without POSIX, and answers with the reference.
LIKE_WINDOWS = """
import ctypes, importlib, os, pkgutil, sys, types

def everything():
    import longsight
    names = [m.name for m in pkgutil.walk_packages(longsight.__path__, "longsight.")]
    # Without the kernels' library, which is no module, and what registers classes with transformers once and for all.
    for name in names:
        if not name.startswith(("longsight.ops.lib", "longsight.hf")):
            importlib.import_module(name)

everything()
for name in [name for name in sys.modules if name.split(".")[0] == "longsight"]:
    del sys.modules[name]
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("posix_fallocate", "sysconf", "statvfs", "sched_getaffinity", "fork", "getuid", "uname"):
    delattr(os, name)

def locking(descriptor, mode, count):
    if locked.setdefault(os.fstat(descriptor).st_ino, descriptor) != descriptor:
        raise PermissionError(13, "Permission denied")

def memory_status(status):
    assert status._obj.length == ctypes.sizeof(status._obj) == 64 and type(status._obj).free.offset == 16
    status._obj.free = 8 << 30
    return 1

locked = {}
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
ctypes.windll = types.SimpleNamespace(kernel32=types.SimpleNamespace(GlobalMemoryStatusEx=memory_status))
loaded, ctypes.CDLL = ctypes.CDLL, None  # no C library of that kind
os.environ["LONGSIGHT_BACKEND"] = "reference"
sys.platform = "win32"
everything()

from pathlib import Path
from longsight import LLM, SamplingParams
from longsight.engine import memory
from longsight.locked import lock_directory

memory.Path = lambda path: Path("none" + path)  # no /proc and no /sys
assert memory.available_bytes() == 8 << 30
held = lock_directory(Path("taken"))
try:
    lock_directory(Path("taken"))
    raise SystemExit("taken twice")
except BlockingIOError:
    pass
answer = LLM(max_model_len=512).generate("Two and two are", SamplingParams(max_tokens=2))
print("answered", len(answer[0].outputs[0].token_ids))
"""


def test_the_reference_answers_where_nothing_is_posix(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIKE_WINDOWS], capture_output=True, text=True, cwd=tmp_path, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "answered 2\n"


@pytest.mark.parametrize("before", [0, 5000, 1 << 21])
def test_room_is_reserved_where_the_system_has_no_call_for_it(
    before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    path, size = tmp_path / "pages.bin", (1 << 20) + 4096
    path.write_bytes(b"x" * before)
    with kv_dir._map(path, size) as pages:
        assert len(pages) == size == path.stat().st_size
        assert pages[:16] == bytes(16)  # a file of another size is begun afresh
        assert path.stat().st_blocks * 512 >= size
