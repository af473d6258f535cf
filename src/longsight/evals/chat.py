"""What a checkpoint's chat template puts around a user's message: evaluation asks as the model is served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longsight.evals.errors import EvalError
from longsight.model.tokenizer import Tokenizer

_CONTENT = "\ue000longsight\ue001"  # private-use characters, which no template has


@dataclass(frozen=True)
class ChatFrame:
    """Token ids before a user's message, and from its end to where the answer begins."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def chat_frame(directory: Path, tokenizer: Tokenizer) -> ChatFrame | None:
    """The frame of one message, with thinking disabled where the template has thinking modes.

    None for a checkpoint without a template, or one whose template adds nothing: it continues text. Raises EvalError
    for a template that leaves the message out or repeats it, and what reading and rendering a template raise.
    """
    from longsight.chat.template import ChatTemplate  # needs jinja2

    template = ChatTemplate.from_checkpoint(directory)
    if template is None:
        return None
    text = template.render([{"role": "user", "content": _CONTENT}], thinking_mode="disabled")
    parts = text.split(_CONTENT)
    if len(parts) != 2:
        raise EvalError(
            f"the chat template of {directory} writes a user's message {len(parts) - 1} times instead of once; ask "
            "without it (longsight eval --no-chat-template)"
        )
    before, after = (tuple(tokenizer.encode(part, add_special_tokens=False)) for part in parts)
    return ChatFrame(before, after) if before or after else None
