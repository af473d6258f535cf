"""Every option that takes a number refuses nonsense in one line that names the option, the value and what is right."""

from __future__ import annotations

import argparse

import pytest

from longsight.cli import numbers
from longsight.cli.main import main
from test_cli_parser import ALL

NONSENSE = ("", "x", "nan", "inf", "-inf", "1e999", "0x10", "1.5", "9" * 30, "9" * 5000)
RANGES = {numbers.positive: ("0", "-1"), numbers.count: ("-1",), numbers.threads: ("0", "-1", "1025")}
REALS = (numbers.number, numbers.rate, numbers.seconds)


def numeric() -> list[tuple[str, argparse.Action]]:
    named = [value for value in vars(numbers).values() if callable(value)]
    return [(prog, a) for prog, each in ALL.items() for a in each._actions if a.type in named]


def test_no_option_takes_a_plain_int_or_float() -> None:
    for prog, each in ALL.items():
        for action in each._actions:
            assert action.type not in (int, float), f"{prog} {action.option_strings}: nothing checks its range"
    assert len(numeric()) > 40


def test_nonsense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for prog, action in numeric():
        if action.type in (numbers.http_url, numbers.byte_size):
            continue  # test_cli_paths.py and test_cli_options.py
        if action.type is numbers.number:
            values: tuple[str, ...] = ("", "x", "0x10")  # the rest is a number, of a range that depends
        elif action.type in REALS:
            values = ("", "x", "nan", "inf", "-1", "1e999")
        else:
            values = (*NONSENSE, *RANGES.get(action.type, ()))  # type: ignore[arg-type]
        for value in values:
            option = action.option_strings[-1]
            with pytest.raises(SystemExit) as caught:
                ALL[prog].parse_args([f"{option}={value}"])
            assert caught.value.code == 2
            err = capsys.readouterr().err
            name = "/".join(action.option_strings)
            assert err.startswith(f"longsight: error: argument {name}: {value!r} is not a "), err
            assert err.count("\n") == 1


@pytest.mark.parametrize("size", ["9" * 40 + "G", "9" * 5000, "99999999999T", "nan", "inf", "-1"])
def test_sizes_beyond_measure(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", f"--kv-memory={size}"])
    assert capsys.readouterr().err.startswith(f"longsight: error: argument --kv-memory: {size!r} is ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temperature=nan"], "argument --temperature: temperature is nan; it must be a number from 0 to 2"),
        (["--temperature=inf"], "argument --temperature: temperature is inf"),
        (["--top-p=-inf"], "argument --top-p: top_p is -inf; it must be a number from 0 to 1"),
        (["--min-p=2"], "argument --min-p: min_p is 2.0; it must be a number from 0 to 1"),
        (["--stop="], "argument --stop: stop is 0 characters long"),
    ],
)
def test_ranges_that_sampling_knows(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "x", *arguments]) == 1
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
