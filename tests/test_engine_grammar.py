"""Grammars: whatever the model would like to say, the answer is of the asked form; hostile ones are refused in time."""

from __future__ import annotations

import json
import re
from array import array

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from fake_model import ByteTokenizer, FakeModel, byte_grammars, sample_rows
from longsight.engine import Engine, Grammar, InvalidRequestError, Request, SamplingParams
from longsight.engine.grammar import GrammarCompiler
from longsight.engine.sampler import Rows, SamplingState


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE with a few hundred merges, so that tokens cross the grammar's borders."""
    t = tokenizers.Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    text = ['{"name": "Ada", "age": 36, "tags": ["x", "y"], "ok": true}'] * 9 + [
        "red green blue 2026-11-21 caf\u00e9 \u65e5"
    ] * 9
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(
        text,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False),
    )
    return t


@pytest.fixture(scope="module")
def compiler(tokenizer: tokenizers.Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer.to_str(), vocab_size=tokenizer.get_vocab_size() + 5, eos_token_ids=(0,))


def babble(compiler: GrammarCompiler, tokenizer: tokenizers.Tokenizer, grammar: Grammar, seed: int) -> str:
    """An answer from random logits that favour ending, within the grammar."""
    who = SamplingState(
        SamplingParams(grammar=grammar, seed=seed), array("i", [1]), stop_ids=(0,), matcher=compiler.matcher(grammar)
    )
    g, tokens = torch.Generator().manual_seed(seed), list[int]()
    favour = torch.zeros(tokenizer.get_vocab_size() + 5)
    for text in ('"', "}", "]", ",", ":", "0"):
        favour[tokenizer.token_to_id(text)] = 3.0
    for _ in range(3000):
        new = sample_rows((torch.randn(len(favour), generator=g) + favour)[None], [Rows(who, 0)])[0]
        assert not isinstance(new, Exception), new
        if new[0].token == 0:
            break
        tokens.append(new[0].token)
        if who.matcher is not None and who.matcher.complete:
            break
    else:
        pytest.fail("the answer never ended")
    return str(tokenizer.decode(tokens, skip_special_tokens=False))


@pytest.mark.parametrize("padding", [0, 5])
def test_a_model_needs_no_token_that_ends_a_text(tokenizer: tokenizers.Tokenizer, padding: int) -> None:
    endless = GrammarCompiler(tokenizer.to_str(), vocab_size=tokenizer.get_vocab_size() + padding)
    if padding:
        assert babble(endless, tokenizer, Grammar("choice", ("red", "green")), 0) in ("red", "green")
    else:
        assert endless.matcher(Grammar("choice", ("red", "green"))).mask()[tokenizer.get_vocab_size() :].sum() == 0


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["x", "y", "\u65e5"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(5))
def test_answers_are_of_the_schema(compiler: GrammarCompiler, tokenizer: tokenizers.Tokenizer, seed: int) -> None:
    value = json.loads(babble(compiler, tokenizer, Grammar("json_schema", json.dumps(SCHEMA)), seed))
    assert set(value) == {"name", "age", "tags"}
    assert len(value["name"]) <= 12
    assert 0 <= value["age"] <= 150
    assert len(value["tags"]) <= 3
    assert set(value["tags"]) <= {"x", "y", "\u65e5"}


@pytest.mark.parametrize("seed", range(5))
def test_answers_match_the_expression(compiler: GrammarCompiler, tokenizer: tokenizers.Tokenizer, seed: int) -> None:
    expression = r"(\d{4}-\d\d-\d\d|caf\u00e9 (red|blue){1,3})"
    assert re.fullmatch(expression, babble(compiler, tokenizer, Grammar("regex", expression), seed))


def test_each_choice_can_come(compiler: GrammarCompiler, tokenizer: tokenizers.Tokenizer) -> None:
    choices = ("red", "green", 'a "quoted"\nline', "\u65e5")
    found = {babble(compiler, tokenizer, Grammar("choice", choices), seed) for seed in range(40)}
    assert found == set(choices)


def test_any_object(compiler: GrammarCompiler, tokenizer: tokenizers.Tokenizer) -> None:
    assert isinstance(json.loads(babble(compiler, tokenizer, Grammar("json_object"), 1)), dict)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar("regex", "(a"), "regex grammar is not usable"),
        (Grammar("json_schema", "{"), "is not JSON"),
        (Grammar("json_schema", "[]"), "must be an object"),
        (Grammar("json_schema", '{"type": "nonsense"}'), "json_schema grammar is not usable"),
        (Grammar("json_schema", '{"a":' * 200 + "1" + "}" * 200), "100 deep"),
        (Grammar("json_schema", "[" * 100_000), "not JSON"),
        (Grammar("choice", ()), "not empty"),
        (Grammar("choice", ("a", "")), "not empty"),
        (Grammar("lark", "start: nowhere"), "lark grammar is not usable"),
        (Grammar("regex", "a" * (2 << 20)), "at most 1048576"),
        (Grammar("regex", ("a",)), "takes a text"),
    ],
)
def test_unusable_grammars_are_refused(compiler: GrammarCompiler, grammar: Grammar, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        compiler.matcher(grammar)
    assert caught.value.param == "grammar"


def test_an_engine_follows_it_and_ends_with_it() -> None:
    e = Engine(FakeModel(), ByteTokenizer(), kv_bytes=40 * 128, grammars=byte_grammars())  # type: ignore[arg-type]
    plain = Request([1, 2, 3], SamplingParams(max_tokens=9, temperature=0))
    asked = Request([1, 2, 3], SamplingParams(max_tokens=50, temperature=0, grammar=Grammar("regex", "ab+c{3}")))
    e.add(plain)
    updates = list(e.generate(asked))
    text = "".join(u.text for u in updates)
    assert re.fullmatch("ab+c{3}", text) or (asked.finish_reason == "length" and re.fullmatch("ab{49}", text))
    with pytest.raises(InvalidRequestError, match="regex"):
        e.add(Request([1], SamplingParams(grammar=Grammar("regex", "("))))
    e.grammars = None
    with pytest.raises(InvalidRequestError, match="tokenizer"):
        e.add(Request([1], SamplingParams(grammar=Grammar("json_object"))))
