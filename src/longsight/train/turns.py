"""Conversations as token ids, in the chat format of MiniMax-M3."""

from __future__ import annotations

from longsight.model.markup import DOCUMENT, END_OF_TURN, END_THINK, THINK, TURN
from longsight.train.script import Material, Script


class Turns:
    """Writes turns into scripts: what people say is read, what the model says is learned."""

    def __init__(self, material: Material) -> None:
        self._material = material
        one = material.special
        self._start, self._turn, self._end = one(DOCUMENT), one(TURN), one(END_OF_TURN)
        self._think, self._end_think = one(THINK), one(END_THINK)

    def begin(self) -> Script:
        return Script().add(self._start)

    def open(self, script: Script, role: str) -> None:
        """The beginning of a turn; its text follows, then `close`."""
        script.add(self._turn).add(self._material.encode(f"{role}\n"))

    def close(self, script: Script) -> None:
        script.add(self._end).add(self._material.encode("\n"))

    def say(self, script: Script, role: str, text: str) -> None:
        self.open(script, role)
        script.add(self._material.encode(text))
        self.close(script)

    def answer(
        self,
        script: Script,
        text: str,
        thought: str = "",
        *,
        asked_to_think: bool,
        free: bool = False,
        only: str | None = None,
    ) -> None:
        """The model's turn, with a thought if it is asked for one. The text may hold calls in their markup.

        free: nothing was said about thinking, so that the model must also know not to. only: a part of the text, the
        last such, which alone is learned.
        """
        encode = self._material.encode
        self.open(script, "ai")
        if asked_to_think:
            script.add(self._think).add(encode(thought), learn=only is None).add(self._end_think, learn=only is None)
        else:
            script.add(self._end_think, learn=free and only is None)
        if only is None:
            script.add(self._material.markup(text), learn=True).add(self._end, learn=True)
        else:
            head, _, tail = text.rpartition(only)
            script.add(encode(head.rstrip())).add(encode(f"{' ' * head.endswith(' ')}{only}"), learn=True)
            script.add(encode(tail)).add(self._end)
        script.add(encode("\n"))
