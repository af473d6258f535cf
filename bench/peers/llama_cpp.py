"""llama.cpp as a peer: found on PATH, or built once from the llama-cpp-python source package into bench/work/."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.harness import WORK, BenchError, progress

PACKAGE = "llama-cpp-python>=0.3.36"  # vendors a llama.cpp that knows minimax-m3
CMAKE_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
}


@dataclass(frozen=True)
class LlamaCpp:
    """The two programs a bench needs, and where they come from."""

    bench: Path
    logits: Path
    origin: str

    def measure(
        self,
        model: Path,
        *,
        prompt: int,
        generate: int,
        depth: int,
        threads: int,
        flash: bool,
        batch: int,
        repeats: int,
    ) -> dict[str, Any]:
        """One llama-bench row as it prints it: avg_ts, stddev_ts, samples_ts in tokens/s, build_commit and so on.

        Without its warm-up run, which would double minutes: take the best of `samples_ts`.
        """
        command = [str(self.bench), "-m", str(model), "-o", "json", "-r", str(repeats), "--no-warmup"]
        command += [
            "-p",
            str(prompt),
            "-n",
            str(generate),
            "-d",
            str(depth),
            "-fa",
            str(int(flash)),
            "-t",
            str(threads),
        ]
        command += ["-b", str(max(batch, 2048)), "-ub", str(batch)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"{' '.join(command)} ended with code {done.returncode}: {done.stderr[-400:]}")
        rows = json.loads(done.stdout)
        if len(rows) != 1:
            raise BenchError(f"{' '.join(command)} printed {len(rows)} rows, expected 1")
        return dict(rows[0])

    def logits_of(self, model: Path, tokens: Tensor, *, first_row: int, flash: bool, threads: int) -> Tensor:
        """fp32 logits [len(tokens) - first_row, vocab] of one prompt."""
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder) / "tokens", Path(folder) / "logits"
            source.write_bytes(tokens.to(torch.int32).numpy().tobytes())
            command = [
                str(self.logits),
                str(model),
                str(source),
                str(out),
                str(first_row),
                str(int(flash)),
                str(threads),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise BenchError(f"llama_logits ended with code {done.returncode}: {done.stderr[-400:]}")
            values = torch.from_numpy(np.fromfile(out, dtype=np.float32))
        return values.view(tokens.shape[0] - first_row, -1)


def llama_cpp() -> LlamaCpp:
    """The installed llama.cpp if its library and header lie beside `llama-bench`, else our own build."""
    found = shutil.which("llama-bench")
    if found:
        prefix = Path(found).resolve().parent.parent
        library, header = prefix / "lib", prefix / "include" / "llama.h"
        if header.exists() and (library / "libllama.so").exists():
            return LlamaCpp(Path(found), _compile_driver([header.parent], library), f"installed: {found}")
    return _built()


def llama_server() -> Path:
    """`llama-server` beside the installed `llama-bench` that `llama_cpp` takes, else of our own build."""
    installed = llama_cpp().bench.with_name("llama-server")
    return installed if installed.exists() else _program("llama-server")


def _built() -> LlamaCpp:
    source, binary = _source(), _program("llama-bench")
    driver = _compile_driver([source / "include", source / "ggml" / "include"], binary.parent)
    return LlamaCpp(binary, driver, f"built from {source.parent.parent.name}")


def _program(target: str) -> Path:
    """bench/work/llama-build/bin/`target`, built if it is not there yet."""
    source, build = _source(), WORK / "llama-build"
    binary = build / "bin" / target
    if not binary.exists():
        with progress(f"building {target}, once (10 to 30 minutes on two cores)") as say:
            options = [f"-D{key}={value}" for key, value in CMAKE_OPTIONS.items()]
            _run(["cmake", "-S", str(source), "-B", str(build), *options], "configure")
            say(f"building {target}: compiling")
            _run(["cmake", "--build", str(build), "--target", target, "-j", str(os.cpu_count() or 1)], "build")
    return binary


def _source() -> Path:
    """The vendored llama.cpp tree, fetched with pip if it is not there yet."""
    WORK.mkdir(parents=True, exist_ok=True)
    pattern = "llama_cpp_python-*/vendor/llama.cpp"
    if not any(WORK.glob(pattern)):
        archives = sorted(WORK.glob("llama_cpp_python-*.tar.gz"))
        if not archives:
            download = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-binary",
                "llama-cpp-python",
                "--no-deps",
                "-d",
                str(WORK),
            ]
            _run([*download, PACKAGE], "download")
            archives = sorted(WORK.glob("llama_cpp_python-*.tar.gz"))
        with tarfile.open(archives[-1]) as archive:
            archive.extractall(WORK, filter="data")
    return sorted(WORK.glob(pattern))[-1]


def _compile_driver(includes: list[Path], libraries: Path) -> Path:
    source, binary = Path(__file__).parent / "llama_logits.cpp", WORK / "llama_logits"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        WORK.mkdir(parents=True, exist_ok=True)
        flags = [f"-I{path}" for path in includes] + [f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
        compiler = os.environ.get("CXX", "g++")
        _run([compiler, "-O2", "-std=c++17", str(source), "-o", str(binary), *flags, "-lllama"], "driver")
    return binary


def _run(command: list[str], step: str) -> None:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except FileNotFoundError as error:
        raise BenchError(f"llama.cpp {step}: {command[0]} is not installed") from error
    if done.returncode:
        log = WORK / f"llama-{step}.log"
        log.write_text(done.stdout)
        raise BenchError(f"llama.cpp {step} failed with code {done.returncode}; its output is in {log}")
