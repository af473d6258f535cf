"""Look ahead: run the tests with every package as new as the bounds allow, and name what broke and by which package.

    make canary
    make canary TESTS="tests/test_hf_convert.py tests/test_llm.py"

The environment is `.canary`, beside `.venv`, which stays as it is. The tests are those that reach a package of somebody
else's by their imports, or those given. Where some fail, packages are raised one at a time from what is locked, the
likeliest first, and those tests run again: the package with which a test fails is the one that broke it. The report is
printed and written to `.canary/report.json`. Exit: 0 if all passed, 1 if something broke.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from interface_tests import interface_tests
from lock import COMPILE, LOCKS, ROOT, pins, uv

CANARY = ROOT / ".canary"
# What tests/clients.py installs as new as its bounds allow.
CLIENTS = "the client programs of tests/js/package.json and locks/*.in"


@dataclass
class Report:
    """What was raised, how many tests ran, and each failure: by which package ("" where only several together)."""

    raised: dict[str, str]
    tests: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    broken_before: list[str] = field(default_factory=list)


def main() -> None:
    CANARY.mkdir(exist_ok=True)
    newest = resolve(CANARY / "newest.txt", "--upgrade")
    locked = pins(LOCKS / "python.txt")
    report = Report(
        {
            n: f"{' or '.join(locked.get(n, ('-',)))} -> {' or '.join(v)}"
            for n, v in newest.items()
            if v != locked.get(n)
        }
    )
    print(f"{len(report.raised)} packages are newer than the lock", *report.raised, sep="\n  ")
    setup("canary", CANARY / "newest.txt")
    report.tests, failures = run_tests("canary", sys.argv[1:] or interface_tests(), newest=True)
    if failures:
        setup("trial", LOCKS / "python.txt")
        report.broken_before = sorted(run_tests("trial", [*failures], newest=False)[1])
        attribute({name: text for name, text in failures.items() if name not in report.broken_before}, report)
    finish(report)


def attribute(failures: Mapping[str, str], report: Report) -> None:
    """Find the package that breaks each test, raising one at a time."""
    left = dict(failures)
    for name in suspects(left, report.raised):
        if not left:
            return
        if name == CLIENTS:
            _, failed = run_tests("trial", [*left], newest=True)
        else:
            resolve(CANARY / "trial.txt", "--upgrade-package", name, start=LOCKS / "python.txt")
            if pins(CANARY / "trial.txt") == pins(LOCKS / "python.txt"):
                continue
            setup("trial", CANARY / "trial.txt")
            _, failed = run_tests("trial", [*left], newest=False)
        for test in failed.keys() & left.keys():
            report.broken[test] = name
            del left[test]
    report.broken |= dict.fromkeys(left, "")


def suspects(failures: Mapping[str, str], raised: Mapping[str, str]) -> list[str]:
    """The raised packages: those that a failure mentions first, then those that pyproject.toml asks for."""
    text = "\n".join(failures.values()).lower()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    direct = {re.split(r"[\[<>=~! ]", line)[0] for line in lines}
    mentioned = {name: len(re.findall(rf"\b{re.escape(name.replace('-', '_'))}\b", text)) for name in raised}
    order = sorted(raised, key=lambda name: (-mentioned[name], name not in direct, name))
    return [*order, CLIENTS]


def resolve(lock: Path, *options: str, start: Path | None = None) -> dict[str, tuple[str, ...]]:
    lock.unlink(missing_ok=True)
    if start is not None:
        shutil.copy(start, lock)
    uv(*COMPILE, *options, "--all-extras", "pyproject.toml", "-o", str(lock))
    return pins(lock)


def setup(name: str, lock: Path) -> None:
    environment = {**os.environ, "LONGSIGHT_VENV": f".canary/{name}", "LONGSIGHT_LOCK": str(lock)}
    subprocess.run([sys.executable, ROOT / "scripts" / "setup.py", "dev"], env=environment, check=True)


def run_tests(name: str, tests: Sequence[str], *, newest: bool) -> tuple[int, dict[str, str]]:
    """How many ran, and what each that failed printed."""
    results = CANARY / "results.xml"
    results.unlink(missing_ok=True)
    environment = {**os.environ, **({"LONGSIGHT_TEST_NEWEST": "1"} if newest else {})}
    python = CANARY / name / "bin" / "python"
    command = [python, "-m", "pytest", "-m", "not slow", "-o", "junit_family=xunit1", f"--junitxml={results}", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if not results.exists():
        sys.exit(f"canary: pytest ended with {done.returncode} before it could say what failed; see above")
    cases = [*ElementTree.parse(results).iter("testcase")]
    failed = {}
    for case in cases:
        trouble = [found for kind in ("failure", "error") if (found := case.find(kind)) is not None]
        if trouble:
            file = case.get("file") or case.get("classname", "").replace(".", "/") + ".py"
            # A file that cannot be imported is a case without a name of its own.
            node = f"{file}::{case.get('name')}" if case.get("file") else file
            failed[node] = trouble[0].text or trouble[0].get("message") or ""
    return len(cases), failed


def finish(report: Report) -> None:
    (CANARY / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    for test in report.broken_before:
        print(f"FAILS with the lock too: {test}")
    for package in sorted({*report.broken.values()}):
        broken = sorted(test for test, by in report.broken.items() if by == package)
        where = f"{package} {report.raised.get(package, '')}".strip() or "only several new packages together"
        print(f"BROKEN by {where}:", *broken, sep="\n  ")
    if report.broken or report.broken_before:
        sys.exit(1)
    print(f"{report.tests} tests passed with {len(report.raised)} newer packages; make lock UPGRADE=1 takes them")


if __name__ == "__main__":
    main()
