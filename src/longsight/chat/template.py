"""Messages to prompt text through the checkpoint's own Jinja template, in the sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from longsight.chat.errors import ChatError, ChatTemplateError
from longsight.model.markup import END_THINK, THINK

NAMED = {"name", "template"}


class ChatTemplate:
    """A compiled template. special_tokens: names such as bos_token that the template may use."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        # Prompts are no web pages: the template language's own filter would escape <, > and & for HTML.
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"the chat template is not valid Jinja, line {error.lineno}: {error.message}"
            ) from error
        self._special_tokens = dict(special_tokens or {})
        self.thinks = THINK in source or END_THINK in source  # whether it knows M3's thinking modes

    @classmethod
    def from_checkpoint(cls, directory: Path, file: Path | None = None) -> ChatTemplate | None:
        """`file`, or chat_template.jinja, or the one in tokenizer_config.json; None if there is none of these."""
        config = _read_json(directory / "tokenizer_config.json")
        path = file or directory / "chat_template.jinja"
        try:
            source = path.read_text("utf-8") if file or path.is_file() else config.get("chat_template")
        except (OSError, UnicodeDecodeError) as error:
            raise ChatTemplateError(f"{path} cannot be read: {error}") from error
        if isinstance(source, list):  # several named templates
            source = {t["name"]: t["template"] for t in source if isinstance(t, dict) and t.keys() >= NAMED}.get(
                "default"
            )
        if source is None:
            return None
        if not isinstance(source, str):
            raise ChatTemplateError(f"chat_template in tokenizer_config.json is {source!r:.80}; it must be a string")
        special = {
            name: str(value.get("content", "")) if isinstance(value, dict) else value
            for name, value in config.items()
            if name.endswith("_token") and isinstance(value, str | dict)
        }
        return cls(source, special)

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **options: Any
    ) -> str:
        """The prompt. add_generation_prompt: it ends where the assistant's answer begins. Raises ChatError if the
        template refuses."""
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **self._special_tokens, **options
            )
        except Exception as error:  # a template is other people's program, and can fail in any way
            raise ChatError(f"the model's chat template refuses these messages: {error}") from error


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ChatTemplateError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ChatTemplateError(f"{path.name} must hold a JSON object")
    return value
