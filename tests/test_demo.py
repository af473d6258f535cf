"""The demo, small: real server, official client, both pictures."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

from longsight.chat.messages import ChatMessage
from longsight.chat.prompt import ChatFormat
from longsight.chat.template import ChatTemplate
from longsight.cli.demo import LEAST_TOKENS
from longsight.cli.demo_errors import NotEnoughTextError
from longsight.cli.demo_puzzle import Puzzle, chat_puzzle, text_puzzle
from longsight.cli.demo_text import gather_text, is_prose
from longsight.cli.main import main
from longsight.model import ModelConfig
from longsight.model.built_in import embedded_path
from longsight.model.needle import NeedlePrompt, hide_needle
from longsight.model.tokenizer import Tokenizer

WORDS = (
    *("report", "total", "file", "server", "value", "result", "field", "window", "letter", "number"),
    *("opened", "closed", "(moved)", "kept,", "found", "lost;", "sent:", '"read"', "  wrote", "under_score"),
)


def prose(lines: int) -> str:
    """Lines of 2 to 13 words, some indented, some with empty lines between."""
    made = []
    for i in range(lines):
        words = [WORDS[(7 * i + 3 * j * j + j) % len(WORDS)] for j in range(2 + i * i % 12)]
        made.append("    " * (i % 7 == 3) + " ".join(words) + ".,: "[i % 4] + "\n" * (1 + (i % 5 == 0)))
    return "".join(made)


def well_drawn(out: Path, printed: str) -> None:
    for name in ("selected-blocks.png", "time-per-token.png"):
        assert str(out / name) in printed
        picture = image.imread(out / name)
        assert picture.shape[0] > 400
        assert picture.std() > 0.02  # something is drawn


REPORTED = ("prefill", "time to first token", "decode", "peak memory", "dense attention", "extrapolated by FLOPs")


def test_the_constructed_model_finds_the_needle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pictures"
    code = main(["demo", "constructed", "--tokens", "6000", "--seed", "3", "--depth", "0.4", "--out", str(out)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "right" in printed
    assert "constructed, not trained" in printed
    assert "1 of 2 layers" in printed
    for words in REPORTED:
        assert words in printed
    well_drawn(out, printed)


def test_the_embedded_model_is_asked_in_a_chat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its weights: that it reads what is said to be read, and that the report is of what it answered."""
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        "longsight.cli.demo_report.plot_selection", lambda *args, **named: drawn.update(named, args=args)
    )
    code = main(["demo", "--tokens", "8192", "--seed", "3", "--depth", "0.4", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "8,192 tokens" in printed
    assert "embedded, trained by recipes/embedded" in printed  # the default
    config = ModelConfig.from_file(embedded_path())
    assert f"{config.num_layers - 1} of {config.num_layers} layers" in printed
    for words in REPORTED[:2]:
        assert words in printed
    answer = re.search(r"^answer  (.*)   (right|WRONG, it is (\d{4}-[A-Z]{3}))$", printed, re.MULTILINE)
    assert answer is not None, printed
    assert code == (answer[2] != "right")
    assert bool(re.search(r"\b\d{4}-[A-Z]{3}\b", answer[1])) or code == 1
    _, selections, tokens = drawn["args"]
    assert {s.layer for s in selections} == set(range(config.num_layers))
    assert {s.token_index for s in selections} == set(range(len(tokens)))
    first, end = drawn["needle"]
    assert f"needle  token {first:,}, depth 0.400" in printed
    assert 0.38 * 8192 < first < end < 0.42 * 8192
    assert (drawn["tokens"], drawn["block_size"]) == (8192, config.block_size)


def test_pictures_of_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(prose(100))
    named = ["--text", str(text), "--seed", "1", "--out", str(tmp_path)]
    assert main(["demo", "embedded", "--tokens", "3000", *named]) in (0, 1)
    printed = capsys.readouterr().out
    assert "text.txt" in printed
    well_drawn(tmp_path, printed)


def test_a_demo_reads_a_file_and_refuses_what_cannot_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a dark and stormy night; the rain fell in torrents. " * 40)
    named = ["--text", str(text), "--seed", "1", "--out", str(tmp_path)]
    assert main(["demo", "constructed", "--tokens", "3000", *named]) == 0
    assert "text.txt" in capsys.readouterr().out
    for model in ("constructed", "embedded"):
        assert main(["demo", model, "--text", str(tmp_path / "missing.txt")]) == 1
        assert "missing.txt" in capsys.readouterr().err
        assert main(["demo", model, "--tokens", "3000", "--depth", "7", *named]) == 1
        assert "depth is 7" in capsys.readouterr().err
        assert main(["demo", model, "--tokens", "20", *named]) == 1
        assert "cannot hold" in capsys.readouterr().err
        for tokens, words in (("127", "the least is 128"), ("100000000000", "the most is 1,0")):
            assert main(["demo", model, "--tokens", tokens, *named]) == 1
            assert f"argument --tokens: {int(tokens):,} tokens" in (err := capsys.readouterr().err)
            assert words in err
        for depth in ("nan", "inf", "-0.1"):
            assert main(["demo", model, "--depth", depth, *named]) == 1
            assert f"argument --depth: depth is {depth}; it must lie between 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["demo", "path/to/model"])
    assert "choose from" in capsys.readouterr().err


def test_a_wrong_answer_is_said_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hide_and_expect_another(*args: Any, **kwargs: Any) -> NeedlePrompt:
        return replace(hide_needle(*args, **kwargs), answer="0000-XXX.")

    monkeypatch.setattr("longsight.cli.demo_puzzle.hide_needle", hide_and_expect_another)
    code = main(["demo", "constructed", "--tokens", "3000", "--seed", "3", "--out", str(tmp_path)])
    assert code == 1
    assert "WRONG, it is 0000-XXX." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The secret code for the amber lantern is 4417-KQX.", True),
        ("4417-KQX", True),
        ("It is '4417-KQX', I think.", True),
        ("It is 4417-kqx.", False),
        ("It is 4417 KQX.", False),
        ("It is 14417-KQX.", False),
        ("It is 4417-KQXX.", False),
        ("It is 4417-KQX-2.", False),
        ("", False),
    ],
)
def test_an_answer_must_hold_the_value_letter_for_letter(answer: str, right: bool) -> None:
    assert Puzzle("", 0, (0, 0), "", "4417-KQX", chat=True).is_right(answer) == right


@pytest.mark.parametrize("depth", [0.0, 0.37, 1.0])
def test_a_question_has_the_tokens_it_says_and_its_needle_where_it_says(depth: float) -> None:
    path = embedded_path()
    tokenizer, template = Tokenizer.from_dir(path), ChatTemplate.from_checkpoint(path)
    form = ChatFormat(tokenizer, template)
    text = prose(300)
    for tokens in (*range(700, 730), 5000):  # less than the text has, and more
        puzzle = chat_puzzle(text, tokens, depth, 5, tokenizer, template)
        prompt = form.prompt([ChatMessage("user", puzzle.text)], thinking="disabled").tokens
        assert len(prompt) == puzzle.tokens == tokens
        first, end = puzzle.needle
        subject = puzzle.question.removeprefix("What is the secret code for the ").removesuffix("?")
        assert tokenizer.decode(prompt[first:end]) == f"The secret code for the {subject} is {puzzle.answer}"
        assert abs(first / tokens - depth) < 90 / tokens
        assert puzzle.text.endswith(f"\n\n{puzzle.question}")
        assert puzzle.text.count(puzzle.answer) == 1
        if depth == 1:
            assert puzzle.text.startswith("\n".join(line.rstrip() for line in text.splitlines())[:1000])
    with pytest.raises(NotEnoughTextError, match="cannot hold"):
        chat_puzzle("   \n", 700, depth, 5, tokenizer, template)


def test_the_least_tokens_hold_every_question() -> None:
    path = embedded_path()
    tokenizer, template = Tokenizer.from_dir(path), ChatTemplate.from_checkpoint(path)
    text = prose(300)
    for seed in range(100):
        puzzle = chat_puzzle(text, LEAST_TOKENS, seed / 99, seed, tokenizer, template)
        assert LEAST_TOKENS - 8 <= puzzle.tokens <= LEAST_TOKENS
        assert text_puzzle(text, LEAST_TOKENS, seed / 99, seed).tokens == LEAST_TOKENS


def test_prose_comes_before_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = "Nothing else of any interest happened in the town that winter.\n" * 20
    files = {
        "a.py": "x = [(1, 2), {3: 4}]\n" * 60,
        "b.json.txt": '{"a": [1, 2, {"b": 3}]}\n' * 60,
        "c.rst": paper,
        "copies/d.md": paper,
        "e.dist-info/METADATA": paper.replace("town", "city"),
        "tests/f.txt": paper.replace("town", "test"),
        "g.bin": paper.replace("town", "data"),
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    text, source = gather_text(1 << 20)
    assert text == files["c.rst"] + files["e.dist-info/METADATA"] + files["b.json.txt"] + files["a.py"]
    assert "(4 files)" in source
    assert gather_text(1000)[0] == files["c.rst"]
    assert is_prose(paper)
    assert not is_prose(files["a.py"])
