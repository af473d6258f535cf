"""The two built-in models by name, and the embedded one as the default everywhere. Holds for any weights of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from longsight import LLM, SamplingParams
from longsight.chat.messages import ChatMessage
from longsight.chat.prompt import ChatFormat
from longsight.chat.template import ChatTemplate
from longsight.cli.main import main
from longsight.engine import InvalidRequestError
from longsight.model import CheckpointError, ModelConfig, built_in, load_model
from longsight.model.built_in import embedded_path, is_built_in, model_dir
from longsight.model.tokenizer import Tokenizer
from test_cli_serve import serve

MOST_BYTES = 32 * 2**20
QUESTION = "The secret code for the amber lantern is 4417-KQX.\n\nWhat is the secret code for the amber lantern?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]


def test_names_and_paths(constructed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_dir() == model_dir("embedded") == embedded_path()
    assert model_dir("constructed") == constructed
    assert model_dir(str(constructed)) == model_dir(constructed) == constructed
    for name in ("constructed", "embedded"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert model_dir("constructed") == constructed
    assert model_dir("./constructed") == model_dir(Path("constructed")) == Path("constructed")
    assert model_dir(Path("embedded")) == Path("embedded")
    for model, known in ((None, True), ("embedded", True), ("./embedded", False), (Path("embedded"), False)):
        assert is_built_in(model) == known


@pytest.mark.parametrize("model", ["Embedded", "constructed ", "nowhere", "tests/nowhere", __file__, Path("nowhere")])
def test_what_is_no_model_is_told_with_what_is(model: str | Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        model_dir(model)
    assert str(caught.value).startswith(
        f"{model} is not a directory; expected a directory with config.json and safetensors"
    )
    assert "embedded or constructed" in str(caught.value)


def test_an_empty_name_is_no_model() -> None:
    with pytest.raises(CheckpointError, match=r"the model's name is empty; .*embedded or constructed"):
        model_dir("")


def test_an_installation_without_the_weights_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "embedded").mkdir()
    (tmp_path / "embedded" / "config.json").write_text("{}")
    monkeypatch.setattr(built_in, "EMBEDDED_DIR", tmp_path / "embedded")
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors, tokenizer\.json, generation_config\.json"):
        LLM()
    for command in (["serve", "--port", "0"], ["generate", "--prompt", "a"], ["demo", "embedded", "--tokens", "4096"]):
        assert main(command) == 1
        err = capsys.readouterr().err
        assert err.startswith("longsight: error: the embedded model is incomplete: ")
        assert err.count("\n") == 1


def test_the_embedded_model_is_small_and_whole() -> None:
    path = embedded_path()
    assert path.is_relative_to(Path(built_in.__file__).parent)
    assert sum(file.stat().st_size for file in path.iterdir()) <= MOST_BYTES
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors", ".jinja", ".md"}
    config, tokenizer = ModelConfig.from_file(path), Tokenizer.from_dir(path)
    assert config.max_position_embeddings >= (1 << 20) + 4096  # room for an answer after a million tokens
    assert tokenizer.vocab_size <= config.vocab_size
    template = ChatTemplate.from_checkpoint(path)
    assert template is not None
    assert template.thinks
    model = load_model(path)
    assert model.weight_bytes <= MOST_BYTES
    # The end of a turn, as the template writes it, ends an answer.
    written = ChatFormat(tokenizer, template).prompt([ChatMessage("user", "Hello.")], thinking="disabled").tokens
    assert set(config.eos_token_ids) & set(written)


def test_generate_and_cost_know_the_names(constructed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--prompt", "abcdefgh" * 5, "--max-tokens", "4", "--temperature", "0", "--max-model-len", "1024"]
    answers = []
    for model in ([], ["embedded"], [str(embedded_path())], ["constructed"]):
        assert main(["generate", *model, *asked]) == 0
        answers.append(capsys.readouterr())
    assert len({answer.out for answer in answers[:3]}) == 1
    assert "read 40 tokens" not in answers[0].err  # its tokens are no bytes
    assert answers[3].out == "abcd\n"
    layers = ModelConfig.from_file(embedded_path()).num_layers
    for model, count in (("embedded", layers), ("constructed", 2)):
        assert main(["cost", model, "--tokens", "4096"]) == 0
        assert f"{model}: 0 full and {count} sparse layers" in capsys.readouterr().out


def test_llm_without_a_name_is_the_embedded_model(constructed: Path) -> None:
    greedy = SamplingParams(max_tokens=8, temperature=0)
    with LLM(max_model_len=2048) as default, LLM("embedded", max_model_len=2048) as named:
        assert default.engine.model.config == ModelConfig.from_file(embedded_path())
        (one,), (other,) = default.chat(MESSAGES, greedy), named.chat(MESSAGES, greedy)
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        assert one.outputs[0].token_ids
        form = ChatFormat(default.tokenizer, ChatTemplate.from_checkpoint(embedded_path()))
        for mode in ("adaptive", "disabled", "enabled"):
            expected = form.prompt([ChatMessage("user", QUESTION)], thinking=mode).tokens  # type: ignore[arg-type]
            (output,) = default.chat(MESSAGES, SamplingParams(max_tokens=1), thinking=mode)  # type: ignore[arg-type]
            assert list(output.prompt_token_ids) == list(expected)
        with pytest.raises(InvalidRequestError, match="thinking is 'off'; it must be one of adaptive, enabled, disab"):
            default.chat(MESSAGES, greedy, thinking="off")  # type: ignore[arg-type]
    with LLM("constructed", max_model_len=2048) as llm:
        (output,) = llm.generate("abcdefgh" * 5, SamplingParams(max_tokens=4, temperature=0))
        assert output.outputs[0].text == "abcd"


def test_the_server_answers_a_chat_and_calls_a_tool(tmp_path: Path) -> None:
    tool: Any = {
        "type": "function",
        "function": {
            "name": "open_door",
            "parameters": {
                "type": "object",
                "properties": {"side": {"type": "string", "enum": ["left", "right"]}},
                "required": ["side"],
                "additionalProperties": False,
            },
        },
    }
    path = embedded_path()
    form = ChatFormat(Tokenizer.from_dir(path), ChatTemplate.from_checkpoint(path))
    key = tmp_path / "signing.key"
    options = ("--max-model-len", "4096", "--threads", "1", "--signing-key", str(key))
    with serve(*options, model=None) as (process, url):
        assert len(key.read_bytes()) == 32
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            (card,) = client.models.list()
            assert card.id == "longsight"
            asked: dict[str, Any] = {"model": "longsight", "messages": MESSAGES, "temperature": 0, "max_tokens": 40}
            modes = {"none": "disabled", "high": "adaptive"}
            for effort, mode in modes.items():
                chat = client.chat.completions.create(reasoning_effort=effort, **asked)
                assert chat.usage is not None
                expected = form.prompt([ChatMessage("user", QUESTION)], thinking=mode).tokens  # type: ignore[arg-type]
                assert chat.usage.prompt_tokens == len(expected)
                assert 1 <= chat.usage.completion_tokens <= 40
                assert chat.choices[0].finish_reason in ("stop", "length")
            # What a grammar requires, any weights give.
            called = client.chat.completions.create(
                tools=[tool],
                tool_choice="required",
                parallel_tool_calls=False,
                reasoning_effort="none",
                **{**asked, "max_tokens": 400},
            )
            assert called.choices[0].finish_reason == "tool_calls"
            (call,) = called.choices[0].message.tool_calls or ()
            assert call.type == "function"
            assert call.function.name == "open_door"
            assert call.function.arguments.replace(" ", "") in ('{"side":"left"}', '{"side":"right"}')
        process.terminate()
        assert process.wait(30) == 0
