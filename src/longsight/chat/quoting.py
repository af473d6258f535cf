"""Keeps the literals of the chat format that stand in people's text from working as such.

A user may write about `]~b]`, and a web page that a tool fetched may hold it to break out of its turn. Before a
conversation is rendered each such literal in anybody's text is replaced by a code of private-use characters; the
rendered text then holds the true markers only, and what the codes stand for is turned into tokens as plain text.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

_BEGIN, _END = "\ue000", "\ue001"
_CODE = re.compile(f"{_BEGIN}([0-9a-f]+){_END}")


class PromptTokenizer(Protocol):
    """What turning a rendered conversation into tokens takes."""

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """Literals that are tokens of their own, wherever they stand."""

    def encode(self, text: str, add_special_tokens: bool = True) -> Sequence[int]: ...
    def encode_plain(self, text: str) -> Sequence[int]:
        """Token ids of a text in which the added tokens' literals are ordinary characters."""


class Quoting:
    """For one tokenizer and template. literals: markers that are no tokens of their own in this vocabulary."""

    def __init__(self, tokenizer: PromptTokenizer, literals: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        added = sorted((t for t in tokenizer.added_tokens if t), key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, added))) if added else None
        known = sorted({*added, *literals, _BEGIN}, key=len, reverse=True)
        self._literals = known
        self._places = {literal: i for i, literal in enumerate(known)}
        self._any = re.compile("|".join(map(re.escape, known)))

    def quote(self, text: str) -> str:
        return self._any.sub(lambda found: f"{_BEGIN}{self._places[found[0]]:x}{_END}", text)

    def quote_all(self, value: Any) -> Any:
        """A JSON value with every text in it quoted, keys too."""
        if isinstance(value, str):
            return self.quote(value)
        if isinstance(value, Mapping):
            return {self.quote(k): self.quote_all(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.quote_all(v) for v in value]
        return value

    def unquote(self, text: str) -> str:
        return _CODE.sub(lambda found: self._literals[int(found[1], 16)], text)

    def encode(self, rendered: str) -> Sequence[int]:
        """Token ids of a rendered conversation, in which the markers are markers and the quoted ones are text."""
        if _BEGIN not in rendered:
            return self._tokenizer.encode(rendered, add_special_tokens=False)
        ids, at = array("i"), 0
        for found in self._added.finditer(rendered) if self._added else ():
            ids.extend(self._tokenizer.encode_plain(self.unquote(rendered[at : found.start()])))
            ids.append(self._tokenizer.added_tokens[found[0]])
            at = found.end()
        ids.extend(self._tokenizer.encode_plain(self.unquote(rendered[at:])))
        return ids
