"""The example of docs/operations.md in front of the server: with nginx's default buffers, each event comes at once."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from fake_model import LookupModel
from live_server import live_server, wait_for

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
pytestmark = pytest.mark.skipif(not Path(NGINX).exists(), reason="nginx is not installed")


DEFAULTS = "location /longsight/ { proxy_pass http://127.0.0.1:8000; }"  # collects 4 KB of an answer over HTTP/1.0


def documented() -> str:
    text = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()
    found = re.search(r"```nginx\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


@contextmanager
def nginx(directory: Path, upstream: str, location: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (directory / "temp").mkdir()
    temporary = " ".join(
        f"{kind}_temp_path {directory}/temp;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""  # its workers write bodies into the test's own directory
    location = location.replace("http://127.0.0.1:8000", upstream)
    (directory / "nginx.conf").write_text(
        f"{user} daemon off; worker_processes 1; pid {directory}/pid; error_log stderr;\nevents {{}}\n"
        f"http {{ access_log off; {temporary}\nserver {{ listen 127.0.0.1:{port};\n{location}}} }}\n"
    )
    command = [NGINX, "-p", str(directory), "-c", "nginx.conf"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: _answers(port) or process.poll() is not None)
            assert process.poll() is None, process.stderr and process.stderr.read()
            yield f"http://127.0.0.1:{port}/longsight"
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("location", [DEFAULTS, documented()], ids=["defaults", "documented"])
def test_events_come_one_by_one(tmp_path: Path, location: str) -> None:
    """Before each token the model waits until the client has read the one before: held back, nothing would come."""
    read = threading.Semaphore(1)

    def wait(tokens: list[int]) -> None:
        assert read.acquire(timeout=20), "the event before never arrived"

    model = LookupModel(before=wait)
    with (
        live_server(model, root_path="/longsight", speculate=False) as server,
        nginx(tmp_path, server.url, location) as url,
    ):
        fields: dict[str, Any] = {
            "model": "tiny",
            "prompt": "x1y2" * 9,
            "max_tokens": 20,
            "temperature": 0,
            "stream": True,
        }
        events = 0
        with httpx.stream("POST", f"{url}/v1/completions", json=fields, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    events += 1
                    read.release()
        assert events >= 20


def test_large_bodies_arrive(tmp_path: Path) -> None:
    with live_server(root_path="/longsight") as server, nginx(tmp_path, server.url, documented()) as url:
        large = httpx.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": "x" * 1_200_000}, timeout=60)
        assert large.json()["error"]["code"] == "context_length_exceeded"
        assert "Longsight" in httpx.get(f"{url}/", headers={"accept": "text/html"}).text
