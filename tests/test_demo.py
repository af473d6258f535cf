"""The demo, small: real server, official client, both pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

from longsight.cli.main import main
from longsight.model.needle import NeedlePrompt, hide_needle


def test_demo_finds_the_needle_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pictures"
    code = main(["demo", "--tokens", "6000", "--seed", "3", "--depth", "0.4", "--out", str(out)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "right" in printed
    for words in (
        "prefill",
        "time to first token",
        "decode",
        "peak memory",
        "dense attention",
        "extrapolated by FLOPs",
    ):
        assert words in printed
    for name in ("selected-blocks.png", "time-per-token.png"):
        assert str(out / name) in printed
        picture = image.imread(out / name)
        assert picture.shape[0] > 400
        assert picture.std() > 0.02  # something is drawn


def test_demo_reads_a_file_and_refuses_what_cannot_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a dark and stormy night; the rain fell in torrents. " * 40)
    assert main(["demo", "--tokens", "3000", "--text", str(text), "--seed", "1", "--out", str(tmp_path)]) == 0
    assert "text.txt" in capsys.readouterr().out
    assert main(["demo", "--text", str(tmp_path / "missing.txt")]) == 1
    assert "missing.txt" in capsys.readouterr().err
    assert main(["demo", "--tokens", "3000", "--text", str(text), "--depth", "7"]) == 1
    assert "depth is 7" in capsys.readouterr().err
    assert main(["demo", "--tokens", "20", "--text", str(text)]) == 1
    assert "cannot hold" in capsys.readouterr().err


def test_a_wrong_answer_is_said_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hide_and_expect_another(*args: Any, **kwargs: Any) -> NeedlePrompt:
        return replace(hide_needle(*args, **kwargs), answer="0000-XXX.")

    monkeypatch.setattr("longsight.model.needle.hide_needle", hide_and_expect_another)
    code = main(["demo", "--tokens", "3000", "--seed", "3", "--out", str(tmp_path)])
    assert code == 1
    assert "WRONG, it is 0000-XXX." in capsys.readouterr().out
