"""`longsight chat`: in a pseudo-terminal and through pipes, with the embedded model and its own template."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longsight import LLM, SamplingParams
from longsight.cli.chat_commands import Leave, obey
from longsight.cli.chat_session import Finished, Reading, Session
from longsight.cli.chat_terminal import Terminal, figures
from longsight.cli.main import main
from longsight.engine import InvalidRequestError
from longsight.outputs import StreamOutput

COMMAND = [sys.executable, "-m", "longsight.cli.main", "chat", "--temperature", "0", "--threads", "1"]
FACT = "The secret code for the amber falcon is 4417-KQX."
QUESTION = "What is the secret code for the amber falcon?"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_model_len=2048, max_running=1) as llm:
        yield llm


@pytest.fixture
def session(llm: LLM) -> Session:
    return Session(llm, SamplingParams(temperature=0, max_tokens=256), thinking="disabled")


def piped(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))


def test_standard_input_is_one_message(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    piped(f"{FACT}\n\n{QUESTION}\n".encode(), monkeypatch)
    assert main(["chat", "--temperature", "0"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"(?<![\w-])4417-KQX(?![\w-])", out)
    assert out.endswith("\n")
    assert out.count("\n") == 1
    assert "\x1b" not in out
    assert err == ""


def test_or_a_message_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one conversation: the second asks about the first. A line that begins with / is text like any other."""
    piped(f"{FACT} {QUESTION}\n\n{QUESTION}\n/exit\n".encode(), monkeypatch)
    assert main(["chat", "--temperature", "0", "--lines", "--thinking", "disabled"]) == 0
    first, second, _ = capsys.readouterr().out.splitlines()[:3]
    assert "4417-KQX" in first
    assert "4417-KQX" in second


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        (b"caf\xe9", [], "standard input is not valid UTF-8 at byte 3"),
        (b" \n\n", [], "standard input holds no message"),
        (b"", ["--lines"], "standard input holds no message"),
        (b"hi", ["--temperature", "7"], "argument --temperature: temperature is 7.0; it must be a number from 0 to 2"),
        (b"hi", ["--top-p", "nan"], "argument --top-p: top_p is nan; it must be a number from 0 to 1"),
        (b"hi", ["--min-p", "-1"], "argument --min-p: min_p is -1.0"),
        (b"word " * 3000, ["--max-model-len", "2000"], "2,000 are possible: /reset begins another"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    text: bytes, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(text, monkeypatch)
    assert main(["chat", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("longsight: error: ")
    assert words in err
    assert err.count("\n") == 1


def test_an_answer_comes_in_pieces_and_is_remembered(session: Session) -> None:
    news = list(session.answers(f"{FACT}\n\n{QUESTION}"))
    assert isinstance(news[0], Reading)
    assert news[0].tokens > 20
    said = "".join(n.text for n in news if isinstance(n, StreamOutput))
    assert "4417-KQX" in said
    assert sum(isinstance(n, StreamOutput) for n in news) > 1
    last = news[-1]
    assert isinstance(last, Finished)
    assert last.context == news[0].tokens + last.tokens
    assert not last.cut
    assert session.messages == [
        {"role": "user", "content": f"{FACT}\n\n{QUESTION}"},
        {"role": "assistant", "content": said},
    ]


def test_an_answer_left_early_stays_as_far_as_it_came(session: Session) -> None:
    answer = session.answers(f"{FACT}\n\n{QUESTION}")
    assert isinstance(next(answer), Reading)
    answer.close()  # type: ignore[attr-defined]
    assert session.messages == []
    answer = session.answers(f"{FACT}\n\n{QUESTION}")
    next(answer)
    first = next(piece for piece in answer if isinstance(piece, StreamOutput) and piece.text)
    answer.close()  # type: ignore[attr-defined]
    assert [m["content"] for m in session.messages] == [f"{FACT}\n\n{QUESTION}", first.text]


def test_thinking_is_apart(llm: LLM) -> None:
    session = Session(llm, SamplingParams(temperature=0, max_tokens=8), thinking="enabled")
    thought = "".join(n.reasoning for n in session.answers(f"{FACT}\n\n{QUESTION}") if isinstance(n, StreamOutput))
    assert thought
    assert session.messages[-1]["reasoning_content"] == thought


def test_the_system_message_is_read(session: Session) -> None:
    session.system = FACT
    assert "4417-KQX" in "".join(n.text for n in session.answers(QUESTION) if isinstance(n, StreamOutput))


def test_commands(session: Session, tmp_path: Path) -> None:
    assert "/reset" in obey("/help", session)
    obey("/system Be brief.", session)
    assert session.system == "Be brief."
    session.messages = [
        {"role": "user", "content": "é"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm"},
    ]
    file = tmp_path / "c.json"
    assert "3 messages" in obey(f"/save {file}", session)
    assert json.loads(file.read_text()) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "é"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm"},
    ]
    obey("/system", session)
    assert session.system == ""
    obey("/reset", session)
    assert session.messages == []
    assert "enabled" in obey("/thinking enabled", session)
    assert "enabled" in obey("/thinking", session)
    with pytest.raises(Leave):
        obey("/exit", session)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/rest", "there is no command /rest; did you mean /reset?"),
        ("/zzz", "there are /help, /reset"),
        ("/thinking maybe", "thinking is 'maybe'; it must be one of adaptive, enabled, disabled"),
        ("/save", "/save needs the name of a file"),
        ("/save /no/such/dir/c.json", "/no/such/dir/c.json cannot be written: No such file or directory"),
        ("/save {here}", "exists already"),
    ],
)
def test_wrong_commands(line: str, words: str, session: Session, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(words)):
        obey(line.format(here=tmp_path), session)


def test_what_a_model_writes_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().show(
        [Reading(1), StreamOutput(0, "a\x1b[2Jb\rc\x9bd\te\nf [bold]g", [1]), Finished(2, 0.5, 0.5, 10, 20, False)]
    )
    assert capsys.readouterr().out == "a[2Jbcd\te\nf [bold]g\n"


def test_figures() -> None:
    assert figures(Finished(11, 0.5, 2.0, 1234, 4096, True)) == (
        "[11 tokens, 5.0 tokens/s, the first after 0.50 s; context 1,234 of 4,096; cut at --max-tokens]"
    )
    assert figures(Finished(1, 0.5, 0.0, 10, 20, False)) == "[1 tokens, the first after 0.50 s; context 10 of 20]"


class Shell:
    """`longsight chat` in a pseudo-terminal."""

    def __init__(self, home: Path, *arguments: str) -> None:
        terminal, theirs = pty.openpty()
        self.terminal, self.shown = terminal, ""
        environment = {**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(home), "COLUMNS": "100"}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C arrives as a signal
        )
        os.close(theirs)
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def _watch(self) -> None:
        try:
            while data := os.read(self.terminal, 4096):
                self.shown += data.decode(errors="replace")
        except OSError:
            pass  # the other side has closed

    def wait_for(self, pattern: str, after: int = 0) -> str:
        """What has been shown from `after` on, as soon as the pattern is in it."""
        deadline = time.monotonic() + 60
        while not re.search(pattern, self.shown[after:], re.DOTALL):
            assert time.monotonic() < deadline, self.shown
            assert self.process.poll() is None or re.search(pattern, self.shown[after:], re.DOTALL), self.shown
            time.sleep(0.05)
        return self.shown[after:]

    def type(self, text: str) -> int:
        """Type it; where what is shown from then on begins."""
        at = len(self.shown)
        os.write(self.terminal, text.encode())
        return at

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        self._watcher.join()
        os.close(self.terminal)


def test_a_conversation_in_a_terminal(tmp_path: Path) -> None:
    shell = Shell(tmp_path, "--thinking", "disabled")
    try:
        shell.wait_for(r"/help for help.*> ")
        at = shell.type(f'"""\n{FACT}\n\n{QUESTION}\n"""\n')
        assert "4417-KQX" in shell.wait_for(r"tokens/s, the first after .*> ", at).split('"""')[-1]
        at = shell.type("What is the code \\\nof the amber falcon?\n")
        shell.wait_for(r"context [\d,]+ of .*> ", at)
        at = shell.type("/rset\n")
        shell.wait_for(r"did you mean /reset\?.*> ", at)
        at = shell.type("half a line")
        # readline overlooks a signal that comes while it takes characters in, until the next key.
        shell.wait_for("half a line", at)
        at = shell.type("\x03")  # Ctrl-C
        shell.wait_for(r"Ctrl-D or /exit ends.*> ", at)
        at = shell.type("/thinking enabled\n")
        shell.wait_for(r"thinking is enabled.*> ", at)
        at = shell.type(f"{FACT} {QUESTION}\n")
        thought = shell.wait_for(r"context [\d,]+ of .*> ", at)
        assert "\x1b[2m" in thought  # dimmed
        shell.type("\x04")  # Ctrl-D
        assert shell.process.wait(60) == 0
        assert "Traceback" not in shell.shown
        history = (tmp_path / "longsight" / "chat-history").read_text()
        assert FACT in history
        assert "/thinking enabled" in history
    finally:
        shell.close()


def test_ctrl_c_stops_an_answer_and_not_the_program(tmp_path: Path, constructed: Path) -> None:
    """The constructed model never ends an answer by itself."""
    shell = Shell(tmp_path, "constructed", "--max-tokens", "100000")
    try:
        shell.wait_for(r"/help for help.*> ")
        at = shell.type("abcdefgh" * 20 + "\n")
        shell.wait_for("(abcdefgh){60}", at)
        at = shell.type("\x03")
        shell.wait_for(r"stopped.*> ", at)
        at = shell.type("/exit\n")
        assert shell.process.wait(60) == 0
        assert "Traceback" not in shell.shown
    finally:
        shell.close()


def test_ctrl_c_ends_what_a_pipe_asked_for(constructed: Path) -> None:
    command = [*COMMAND, "constructed", "--max-tokens", "100000"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"abcdefgh" * 20)
        process.stdin.close()
        assert process.stdout.read(8)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(60) == 130
        finally:
            process.kill()
        assert process.stderr.read() == b"longsight: interrupted\n"
