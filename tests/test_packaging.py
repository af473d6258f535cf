"""`make wheel`: what the files hold, how an index shows them, and that the wheel serves where no checkout is."""

from __future__ import annotations

import email.message
import email.policy
import os
import platform
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from pathlib import Path

import httpx
import pytest
from readme_renderer import markdown
from trove_classifiers import classifiers

import longsight

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INFO = f"longsight_engine-{longsight.__version__}.dist-info"


def licences() -> list[Path]:
    return [path for pattern in PROJECT["license-files"] for path in ROOT.glob(pattern)]


# Compiling is a minute's work for two cores, and much more for two cores that others use as well.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist and the wheel built from it: LONGSIGHT_TEST_DIST, or one made for these tests."""
    if given := os.environ.get("LONGSIGHT_TEST_DIST"):
        return Path(given)
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, ROOT / "scripts" / "wheel.py", "--out", out], cwd=out, check=True)
    return out


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel, the extra `server`, and nothing else."""
    venv = tmp_path_factory.mktemp("empty") / "venv"
    setup = [sys.executable, ROOT / "scripts" / "setup.py", "server", "--from", wheel]
    subprocess.run(setup, cwd=venv.parent, env={**os.environ, "LONGSIGHT_VENV": str(venv)}, check=True)
    return venv / "bin" / "python"


@pytest.fixture
def metadata(wheel: Path) -> email.message.EmailMessage:
    with zipfile.ZipFile(wheel) as archive:
        return BytesParser(policy=email.policy.compat32).parsebytes(archive.read(f"{INFO}/METADATA"))  # type: ignore[return-value]


def test_one_wheel_for_every_python_and_many_linuxes(wheel: Path) -> None:
    name, version, python, abi, system = wheel.stem.split("-")
    assert (name, version, python, abi) == ("longsight_engine", longsight.__version__, "py3", "none")
    if sys.platform == "linux":
        found = re.fullmatch(r"manylinux_2_(\d+)_\w+", system)
        assert found is not None, system
        # What docs/install.md says; a newer compiler's C library could raise it unnoticed.
        documented = re.search(r"glibc 2\.(\d+)", (ROOT / "docs" / "install.md").read_text())
        assert documented is not None
        assert int(found[1]) <= int(documented[1])


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src"]
    tree = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    package = {name.removeprefix("src/") for name in tree if (ROOT / name).is_file()}
    kernels = "longsight/ops/liblongsight_kernels.so"
    assert {"longsight/py.typed", "longsight/model/embedded/LICENSE.md"} < package
    assert {name for name in names if not name.startswith(INFO)} == package | {kernels}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have the generic kernels only")
def test_the_kernels_are_for_every_instruction_set(wheel: Path) -> None:
    sets = ("generic", "avx2", "avx512", "avx512_bf16")
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read("longsight/ops/liblongsight_kernels.so")
    assert [name for name in sets if name.encode() not in library] == []


def test_the_licences_are_in_the_metadata(wheel: Path, metadata: email.message.EmailMessage) -> None:
    assert metadata["License-Expression"] == PROJECT["license"]
    listed = metadata.get_all("License-File")
    assert sorted(listed) == sorted(str(path.relative_to(ROOT)) for path in licences())
    # Whatever somebody else's code comes with, in the package as in the metadata.
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("LICENSE*")} < set(listed)
    with zipfile.ZipFile(wheel) as archive:
        for name in listed:
            assert archive.read(f"{INFO}/licenses/{name}") == (ROOT / name).read_bytes()


def test_the_metadata_is_what_an_index_takes(metadata: email.message.EmailMessage) -> None:
    assert metadata["Name"] == "longsight-engine"
    assert len(metadata["Summary"]) <= 512
    assert set(metadata.get_all("Classifier")) <= classifiers
    # With a licence expression an index refuses licence classifiers.
    assert not [name for name in metadata.get_all("Classifier") if name.startswith("License ::")]


def test_the_description_renders_without_links_that_break(metadata: email.message.EmailMessage) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload()
    html = markdown.render(text)
    assert html is not None
    assert "<h1" in html
    targets = re.findall(r'(?:href|src)="([^"]*)"', html)
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    assert not re.search(r"\]\((?!https://|#)", text)


def test_the_sdist_holds_what_builds_and_explains(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"README.md", "CMakeLists.txt", "csrc/dispatch.cpp", "docs/install.md", "locks/python.txt", "Makefile"}
    assert needed | {str(path.relative_to(ROOT)) for path in licences()} <= names
    assert not [name for name in names if name.startswith((".venv", ".git/", "build", "dist", "demo-out", "runs"))]


def elsewhere(tmp_path: Path) -> dict[str, str]:
    """An environment for commands that know nothing of this checkout."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LONGSIGHT", "VIRTUAL"))
    }
    return {**kept, "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}


@contextmanager
def served(python: Path, directory: Path, *options: str) -> Iterator[str]:
    """The address of `longsight serve` out of an environment, run in a directory."""
    command = [python.parent / "longsight", "serve", "--port", "0", "--kv-memory", "64MiB", *options]
    with subprocess.Popen(
        command, cwd=directory, env=elsewhere(directory), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    yield found[0]
                    return
            raise AssertionError("the server ended before it listened")
        finally:
            process.kill()


def test_the_wheel_serves_an_answer_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    environment = elsewhere(tmp_path)

    def printed(*command: str | Path) -> str:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert printed(installed.parent / "longsight", "--version") == f"longsight {longsight.__version__}"
    where = printed(installed, "-c", "import longsight, sys; print(longsight.__file__, *sys.path)")
    assert str(ROOT) not in where
    kernels = "from longsight.ops import kernels; print(*kernels.usable_isas())"
    assert "generic" in printed(installed, "-c", kernels)
    packages = printed(installed, "-m", "uv", "pip", "freeze", "--python", str(installed))
    assert "openai" not in packages
    question = "The secret code for the amber falcon is 4417-KQX.\n\nWhat is the secret code for the amber falcon?"
    body = {
        "model": "longsight",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 64,
        "thinking": {"type": "disabled"},
    }
    with served(installed, tmp_path) as url:
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
        assert "longsight_info" in httpx.get(f"{url}/metrics").text
        assert httpx.get(url, headers={"accept": "text/html"}).text.lower().startswith("<!doctype html>")
    assert "4417-KQX" in answer.json()["choices"][0]["message"]["content"], answer.text
