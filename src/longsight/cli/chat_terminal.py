"""The terminal of `longsight chat`: lines in, answers out. Without a terminal, answers are all that is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from rich.console import Console

from longsight.cli.chat_session import Finished, News, Reading

PROMPT, MORE, FENCE = "> ", ". ", '"""'
HISTORY_LINES = 1000
# What a model writes must not move the cursor or change colours: no control characters but tabs and line breaks.
HARMLESS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


class Terminal:
    """Remarks and figures go to stderr where a terminal watches, and nowhere else."""

    def __init__(self) -> None:
        self._out = Console(highlight=False, markup=False, soft_wrap=True)
        self._remarks = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def print(self, text: str) -> None:
        """A remark of the program."""
        self._remarks.print(text, style="dim")

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """A spinner while nothing else happens."""
        return self._remarks.status(what) if self._remarks.is_terminal else nullcontext()

    def read(self) -> str | None:
        """A message of one line or more; None at the end of the input. Ctrl-C drops what was typed."""
        while True:
            try:
                return _message()
            except EOFError:
                self.print("")
                return None
            except KeyboardInterrupt:
                self.print("\nCtrl-D or /exit ends")

    def show(self, answer: Iterable[News]) -> None:
        """Write an answer while it comes: its thinking dimmed, and only on a terminal."""
        thinking = written = False
        with self._stopping() as status:
            for news in answer:
                if isinstance(news, Reading):
                    status.update(f"reading {news.tokens:,} tokens")
                    continue
                status.stop()
                if isinstance(news, Finished):
                    self._write("\n" if written or self._out.is_terminal else "")
                    if self._out.is_terminal:
                        self.print(figures(news))
                    continue
                if news.reasoning and self._out.is_terminal:
                    self._write(news.reasoning, dimmed=True)
                    thinking = True
                if news.text:
                    self._write("\n\n" * thinking + news.text)
                    thinking, written = False, True

    @contextmanager
    def _stopping(self) -> Iterator[_Status]:
        status = _Status(self._remarks if self._out.is_terminal else None)
        try:
            yield status
        finally:
            status.stop()

    def _write(self, text: str, *, dimmed: bool = False) -> None:
        text = text.translate(HARMLESS)
        if dimmed:
            self._out.print(text, end="", style="dim")
        else:
            self._out.file.write(text)  # rich would expand tabs
        self._out.file.flush()

    @contextmanager
    def remembering(self, file: Path) -> Iterator[None]:
        """Lines typed in earlier conversations come back with the arrow keys. A file that can't be used is done
        without: it is a convenience."""
        try:
            import readline
        except ImportError:  # a Python without it
            yield
            return
        with suppress(OSError):
            readline.read_history_file(file)
        readline.set_history_length(HISTORY_LINES)
        try:
            yield
        finally:
            with suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                file.touch(mode=0o600)
                readline.write_history_file(file)


class _Status:
    """A spinner that may be absent, and may be stopped twice."""

    def __init__(self, console: Console | None) -> None:
        self._status = console.status("") if console is not None and console.is_terminal else None

    def update(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)
            self._status.start()

    def stop(self) -> None:
        if self._status is not None:
            self._status.stop()


def figures(done: Finished) -> str:
    """How fast the answer came, in a line."""
    speed = f", {(done.tokens - 1) / done.seconds:,.1f} tokens/s" if done.tokens > 1 and done.seconds else ""
    cut = "; cut at --max-tokens" if done.cut else ""
    return (
        f"[{done.tokens:,} tokens{speed}, the first after {done.first_seconds:.2f} s; "
        f"context {done.context:,} of {done.limit:,}{cut}]"
    )


def _message() -> str:
    """One line, or several joined by a backslash at the end or fenced by triple quotes."""
    line = input(PROMPT)
    if line.strip() == FENCE:
        lines = []
        while (line := input(MORE)).strip() != FENCE:
            lines.append(line)
        return "\n".join(lines)
    while line.endswith("\\"):
        line = f"{line[:-1]}\n{input(MORE)}"
    return line
