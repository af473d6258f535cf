"""Text from tokens: whole characters, and stop strings that straddle tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_model import ByteTokenizer
from longsight.engine.text import MAX_PENDING_TOKENS, StopScanner, TextStream


def pieces(stream: TextStream, data: bytes) -> list[str]:
    out = []
    for token in data:
        out.append(stream.push(token))
        if stream.stopped:
            return out
    return [*out, stream.flush()]


@given(st.text(max_size=40))
def test_bytes_come_out_as_whole_characters(text: str) -> None:
    out = pieces(TextStream(ByteTokenizer()), text.encode())
    assert "".join(out) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in out)


def test_an_unfinished_character_at_the_end_is_shown_as_such() -> None:
    assert pieces(TextStream(ByteTokenizer()), b"a\xe2\x82") == ["a", "", "", "\ufffd"]


def test_endless_bad_bytes_are_not_held_for_ever() -> None:
    stream = TextStream(ByteTokenizer())
    shown = [stream.push(0xFF) for _ in range(3 * MAX_PENDING_TOKENS)]
    assert "".join(shown) == "\ufffd" * (3 * MAX_PENDING_TOKENS)


@pytest.mark.parametrize(
    ("stop", "text", "shown"),
    [
        (["END"], "one END two", "one "),
        (["END"], "EENENDx", "EEN"),
        (["aab"], "aaab", "a"),
        (["x", "long"], "a longx", "a "),
        (["abc", "b"], "xabc", "xa"),  # "b" is complete first
        (["bc", "abc"], "xabc", "x"),  # both end together: the earlier start
        (["no"], "n", "n"),
        (["é"], "café!", "caf"),
        (["\n\n"], "line\nline\n\nrest", "line\nline"),
    ],
)
def test_stop_strings(stop: list[str], text: str, shown: str) -> None:
    stream = TextStream(ByteTokenizer(), stop)
    assert "".join(pieces(stream, text.encode())) == shown
    assert stream.stopped == (shown != text)


@given(
    text=st.text("abc", max_size=30),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    data=st.data(),
)
def test_the_cut_does_not_depend_on_the_pieces(text: str, stop: list[str], data: st.DataObject) -> None:
    def shown(parts: list[str]) -> tuple[str, bool]:
        scanner, out = StopScanner(stop), ""
        for part in parts:
            out += scanner.push(part)
            # Nothing shown may contain a stop string, nor end in what the rest could complete.
            assert not any(s in out for s in stop)
            if scanner.stopped:
                return out, True
        return out + scanner.flush(), False

    parts, rest = [], text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        parts.append(rest[:size])
        rest = rest[size:]
    assert shown(parts) == shown(list(text))
    ends = [text.find(s) + len(s) for s in stop if s in text]
    assert shown(parts)[1] == bool(ends)
