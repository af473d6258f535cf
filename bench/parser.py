"""The parser of answers: its time grows with the text, and no faster; how much of a core a stream of tokens takes."""

from __future__ import annotations

import time

from bench.compare import require
from bench.harness import Row, Session, Target, progress
from longsight.chat.events import Message
from longsight.chat.parser import OutputParser
from longsight.model.markup import END_THINK, NAMESPACE, THINK

NAME = "parser"
TITLE = "parser of thinking and tool calls"
LINEAR = Target(2.3, at_least=False)  # the time of twice the text; 2 and what a noisy machine adds
PIECE = 5  # characters at a time, about a token
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}, "list": {"type": "array"}}}


def texts(size: int) -> dict[str, str]:
    """Answers of about `size` characters, each long in another way."""
    ns, words = NAMESPACE, "Words <and> ]<more[ of them. "
    many = size // len(words)
    invoke, end = f'{ns}<invoke name="f">{ns}<text>', f"{ns}</invoke>\n"
    items = f"{ns}<list>{f'{ns}<item>1{ns}</item>' * 3}{ns}</list>"
    call = f"{invoke}{words * 3}{ns}</text>{items}{end}"
    return {
        "content": words * many,
        "thinking": f"{THINK}{words * many}{END_THINK}.",
        "one long argument": f"{ns}<tool_call>\n{invoke}{words * many}{ns}</text>{end}",
        "many calls": f"{ns}<tool_call>\n{call * (size // len(call))}{ns}</tool_call>",
        "unfinished markers": "]<]minimax[>" * (size // 12),
        "white space after a marker": ns + " " * size,
        "empty lines while thinking": THINK + "." + "\n" * size + ".",
    }


def seconds(text: str) -> float:
    best = 1e9
    for _ in range(3):
        parser = OutputParser("undecided", {"f": SCHEMA})
        started = time.perf_counter()
        for at in range(0, len(text), PIECE):
            parser.push(text[at : at + PIECE])
        parser.finish()
        best = min(best, time.perf_counter() - started)
    return best


def run(session: Session) -> None:
    size = session.pick(1 << 20, 1 << 12)
    session.settle()
    for what, text in texts(size).items():
        whole, pieces = OutputParser("undecided", {"f": SCHEMA}), OutputParser("undecided", {"f": SCHEMA})
        told = Message.of([*whole.push(text), *whole.finish()])
        events = [e for at in range(0, len(text), PIECE) for e in pieces.push(text[at : at + PIECE])]
        same = Message.of([*events, *pieces.finish()]) == told
        session.passed(require(f"answers that differ in pieces, {what}", int(not same), 0))
        with progress(f"{NAME}: {what}"):
            half, full = seconds(text[: len(text) // 2]), seconds(text)
        where = {"text": what, "characters": len(text)}
        detail = {"half_s": half, "full_s": full}
        session.add(Row("time of twice the text", full / half, "x", where, LINEAR, detail))
        session.add(Row("a piece of five characters", 1e6 * full / (len(text) / PIECE), "us", where))
