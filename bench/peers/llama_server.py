"""llama.cpp's `llama-server` as a peer, and the running of any server as a process of its own."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.harness import WORK, BenchError
from bench.machine import ROOT

BATCH = 2048  # the server's default: prompt tokens between two looks at the other streams
SLOTS = WORK / "llama-slots"
START_SECONDS, STOP_SECONDS = 120.0, 5.0


@dataclass(frozen=True)
class LlamaServer:
    """A running llama-server, which keeps each stream's context in a slot."""

    url: str

    def save(self, slot: int, name: str) -> int:
        """Write a slot's context to a file. -> the tokens it holds."""
        return int(self._slot(slot, "save", name)["n_saved"])

    def restore(self, slot: int, name: str) -> int:
        """Fill a slot from a file. -> the tokens it holds now."""
        return int(self._slot(slot, "restore", name)["n_restored"])

    def likeliest(self, prompt: Sequence[int], count: int = 16) -> dict[int, float]:
        """Log-probabilities (nats) of the `count` likeliest next tokens by id. What slot 0 holds is not read anew."""
        body = {"prompt": list(prompt), "n_predict": 1, "temperature": 0, "n_probs": count, "id_slot": 0}
        answer = httpx.post(f"{self.url}/completion", json=body, timeout=None)
        if answer.status_code != 200:
            raise BenchError(f"llama-server answered {answer.status_code}: {answer.text[:400]}")
        found = answer.json()["completion_probabilities"][0]["top_logprobs"]
        return {int(token["id"]): float(token["logprob"]) for token in found}

    def _slot(self, slot: int, action: str, name: str) -> dict[str, Any]:
        answer = httpx.post(
            f"{self.url}/slots/{slot}", params={"action": action}, json={"filename": name}, timeout=120.0
        )
        if answer.status_code != 200:
            raise BenchError(f"llama-server could not {action} slot {slot}: {answer.text[:400]}")
        return dict(answer.json())


@contextmanager
def llama_server(
    program: Path, model: Path, *, slots: int, slot_tokens: int, threads: int, batch: int, ubatch: int
) -> Iterator[LlamaServer]:
    """Run `program` with `slots` contexts of `slot_tokens` each, flash attention on, nothing kept between requests."""
    SLOTS.mkdir(parents=True, exist_ok=True)
    number = free_port()
    command = [str(program), "-m", str(model), "--host", "127.0.0.1", "--port", str(number)]
    # A context of its own for each slot: in a unified one every stream attends over the cells of all.
    command += ["-np", str(slots), "-c", str(slots * slot_tokens), "--no-kv-unified"]
    command += ["-fa", "on", "-t", str(threads), "-tb", str(threads), "-b", str(batch), "-ub", str(ubatch)]
    command += ["--cache-ram", "0", "--ctx-checkpoints", "0", "--slot-save-path", str(SLOTS)]
    url = f"http://127.0.0.1:{number}"

    def healthy(_: str) -> str | None:
        try:
            return url if httpx.get(f"{url}/health", timeout=5.0).status_code == 200 else None
        except httpx.TransportError:
            return None

    with server_process(command, WORK / "llama-server.log", healthy) as found:
        yield LlamaServer(found)


@contextmanager
def server_process(command: Sequence[str], log: Path, ready: Callable[[str], str | None]) -> Iterator[str]:
    """Run a server until the block ends. `ready` gets its output so far and gives its base URL, or None: not yet.

    Its output goes to `log`. Raises BenchError with the log's end if it ends early or is not ready in time.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        try:
            process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        except OSError as error:
            raise BenchError(f"{command[0]} does not start: {error}") from error
    try:
        yield _wait_until_ready(process, log, ready)
        if process.poll() is not None:
            raise BenchError(f"{command[0]} ended with code {process.returncode} under way: {_end(log)}")
    except httpx.TransportError as error:
        raise BenchError(f"{command[0]} broke off a request ({error!r}): {_end(log)}") from error
    finally:
        _stop(process)


def free_port() -> int:
    """A loopback port that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path, ready: Callable[[str], str | None]) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"{process.args!r} ended with code {process.returncode}: {_end(log)}")
        url = ready(log.read_text(errors="replace"))
        if url is not None:
            return url
        time.sleep(0.1)
    raise BenchError(f"{process.args!r} was not ready after {START_SECONDS:.0f} s: {_end(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End it; llama-server looks up between batches only, which may be half a minute away."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end(log: Path) -> str:
    return log.read_text(errors="replace")[-600:]
