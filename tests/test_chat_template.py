"""Chat templates: found where checkpoints keep them, run in the sandbox, refusing with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longsight.chat.errors import ChatError, ChatTemplateError
from longsight.chat.template import ChatTemplate

HELLO = [{"role": "user", "content": "<hello> & 'you'"}]


def test_rendering() -> None:
    template = ChatTemplate(
        "{{ bos_token }}\n{%- for m in messages %}\n[{{ m.role }}]{{ m.content }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n[ai]\n{%- endif %}\n",
        {"bos_token": "<s>"},
    )
    assert template.render(HELLO) == "<s>[user]<hello> & 'you'[ai]"


def test_json_is_not_escaped_for_the_web() -> None:
    assert ChatTemplate("{{ messages | tojson }}").render([{"content": "<é> & 'you'"}]) == (
        '[{"content": "<é> & \'you\'"}]'
    )


def test_a_template_may_refuse() -> None:
    template = ChatTemplate("{{ raise_exception('only one message, please') }}")
    with pytest.raises(ChatError, match="only one message, please") as caught:
        template.render(HELLO)
    assert caught.value.path == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].content.no_such.attribute }}",
        "{{ 1 + 'a' }}",
        "{{ 1 // 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_what_a_template_may_not_do(source: str) -> None:
    with pytest.raises(ChatError, match="chat template refuses"):
        ChatTemplate(source).render(HELLO)


def test_a_template_that_does_not_parse() -> None:
    with pytest.raises(ChatTemplateError, match="line 2"):
        ChatTemplate("ok\n{% if %}")


def write(directory: Path, name: str, value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    (directory / name).write_text(text, encoding="utf-8")


def test_where_a_checkpoint_keeps_it(tmp_path: Path) -> None:
    assert ChatTemplate.from_checkpoint(tmp_path) is None
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": "named{{ eos_token }}"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named, "eos_token": {"content": "</s>"}})
    assert rendered(tmp_path) == "named</s>"
    write(tmp_path, "tokenizer_config.json", {"chat_template": "plain {{ bos_token }}", "bos_token": "<s>"})
    assert rendered(tmp_path) == "plain <s>"
    write(tmp_path, "chat_template.jinja", "file {{ bos_token }}")
    assert rendered(tmp_path) == "file <s>"


def rendered(directory: Path) -> str:
    template = ChatTemplate.from_checkpoint(directory)
    assert template is not None
    return template.render(HELLO)


@pytest.mark.parametrize("content", ["{", "[]", '{"chat_template": 5}'])
def test_files_that_make_no_sense(tmp_path: Path, content: str) -> None:
    write(tmp_path, "tokenizer_config.json", content)
    with pytest.raises(ChatTemplateError):
        ChatTemplate.from_checkpoint(tmp_path)


def test_a_file_instead_of_the_checkpoints_own(tmp_path: Path) -> None:
    write(tmp_path, "chat_template.jinja", "own")
    write(tmp_path, "other.jinja", "other {{ messages | length }}")
    template = ChatTemplate.from_checkpoint(tmp_path, tmp_path / "other.jinja")
    assert template is not None
    assert template.render(HELLO) == "other 1"
    with pytest.raises(ChatTemplateError, match=r"no\.jinja cannot be read"):
        ChatTemplate.from_checkpoint(tmp_path, tmp_path / "no.jinja")
