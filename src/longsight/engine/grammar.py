"""Answers that must look like something: JSON of a schema, a regular expression, one of several choices.

llguidance keeps the grammar and says which tokens may come next; what is here compiles within limits and works the next
mask out on a thread of its own while the model computes.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import llguidance
import numpy as np
import torch
from torch import Tensor

from longsight.engine.errors import InvalidRequestError
from longsight.engine.params import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # a type of its stubs only

# One form of white space: left free, a model may write nothing else until its tokens run out.
JSON_FORM: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
MAX_GRAMMAR_CHARS = 1 << 20
MAX_SCHEMA_DEPTH = 100
MAX_SCHEMA_NODES = 20_000
# A tenth of the library's own for a grammar as it comes, about a tenth of a second: grammars are other people's text.
LIMITS = llguidance.LLParserLimits(initial_lexer_fuel=1_000_000, step_lexer_fuel=200_000, max_grammar_size=100_000)
# The library follows references on the stack and dies of a chain of 700 in the usual 8 MB. A node of a schema or a rule
# of a grammar was seen to take up to 4 KB; pages of a stack that are never touched cost nothing.
STACK_BYTES = 256 << 20
UNUSED = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
T = TypeVar("T")


@functools.cache
def _builder() -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(1, thread_name_prefix="longsight-grammar-build")
    before = threading.stack_size(STACK_BYTES)
    try:
        pool.submit(int).result()  # the thread is started here, with this stack
    finally:
        threading.stack_size(before)
    return pool


def on_large_stack(function: Callable[[], T]) -> T:
    """What compiles other people's grammars, where their depth cannot end the process."""
    return _builder().submit(function).result()


def check_schema(schema: object) -> None:
    """InvalidRequestError if a JSON schema is too deep or too large to be compiled in safety."""
    level, nodes = [schema], 0
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [v for x in level for v in (x.values() if isinstance(x, dict) else x if isinstance(x, list) else ())]
        nodes += sum(isinstance(x, dict | list) for x in level)
    if level:
        raise InvalidRequestError(f"the JSON schema is nested more than {MAX_SCHEMA_DEPTH} deep", "grammar")
    if nodes > MAX_SCHEMA_NODES:
        raise InvalidRequestError(
            f"the JSON schema has {nodes} objects and lists in it; at most {MAX_SCHEMA_NODES} are read", "grammar"
        )


class GrammarMatcher:
    """Where one answer stands in its grammar. complete: nothing can follow."""

    def __init__(self, matcher: llguidance.LLMatcher, pool: ThreadPoolExecutor) -> None:
        self._matcher, self._pool = matcher, pool
        self.complete = False
        self._mask: Future[bytes] = pool.submit(matcher.compute_bitmask)

    def mask(self) -> Tensor:
        """Bool [vocab]: which tokens may come next; waits for the thread that works it out."""
        bits = np.frombuffer(self._mask.result(), dtype=np.uint8)
        self._check()
        return torch.from_numpy(np.unpackbits(bits, bitorder="little").view(np.bool_))

    def accept(self, token: int) -> None:
        """`token` has become part of the answer; the next mask is begun."""
        self._mask.result()  # the matcher is one state machine: its mask is done before it moves on
        self._matcher.consume_token(token)
        self._check()
        self.complete = bool(self._matcher.is_stopped())
        if not self.complete:
            self._mask = self._pool.submit(self._matcher.compute_bitmask)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequestError(f"the grammar cannot be followed: {self._matcher.get_error()}", "grammar")


class GrammarCompiler:
    """Compiles grammars for one tokenizer (tokenizer.json as text, or its path)."""

    def __init__(self, tokenizer: str | Path, *, vocab_size: int, eos_token_ids: tuple[int, ...] = ()) -> None:
        text = tokenizer.read_text("utf-8") if isinstance(tokenizer, Path) else tokenizer
        known = json.loads(text)
        known["added_tokens"] = known.get("added_tokens") or []
        size = 1 + max([*known["model"]["vocab"].values(), *(t["id"] for t in known["added_tokens"])], default=-1)
        end = list(eos_token_ids)
        if not end:  # the library wants a token that ends a text: one that the model cannot produce
            end = [max(vocab_size, size)]
            known["added_tokens"] += [{**UNUSED, "content": f"<unused {i}>", "id": i} for i in range(size, end[0] + 1)]
        text = json.dumps(_as_text(known))
        self._tokenizer = llguidance.LLTokenizer(
            text, n_vocab=max(vocab_size, size, *(e + 1 for e in end)), eos_token=end
        )
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="longsight-grammar")

    def matcher(self, grammar: Grammar) -> GrammarMatcher:
        """A matcher at the beginning of `grammar`. Raises InvalidRequestError naming what is wrong with it."""
        source = _source(grammar)
        matcher: Any = on_large_stack(lambda: llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=LIMITS))
        if matcher.is_error():
            raise InvalidRequestError(f"the {grammar.kind} grammar is not usable: {matcher.get_error()}", "grammar")
        return GrammarMatcher(matcher, self._pool)


def _as_text(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json whose added tokens are text unless flagged special. The library takes all that look like <this>
    for special ones, which no expression matches: they become ordinary tokens."""
    given = tokenizer.get("added_tokens") or ()
    added = [t for t in given if t.get("special") or not re.fullmatch(r"<[!-~]*>", t["content"])]
    # The others keep their ids only if the vocabulary has them too: else they are numbered anew.
    vocab = {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in given}}
    return {**tokenizer, "added_tokens": added, "model": {**tokenizer["model"], "vocab": vocab}}


def _source(grammar: Grammar) -> str:
    """The grammar in the library's own form."""
    value = grammar.value
    texts = (value,) if isinstance(value, str) else value
    length = sum(map(len, texts))
    if length > MAX_GRAMMAR_CHARS:
        raise InvalidRequestError(
            f"the grammar has {length} characters; at most {MAX_GRAMMAR_CHARS} are read", "grammar"
        )
    if grammar.kind == "choice":
        if isinstance(value, str) or not value or not all(value):
            raise InvalidRequestError(
                f"choice is {value!r:.80}; it must be a list of texts that are not empty", "grammar"
            )
        return str(llguidance.LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(v) for v in value)))
    if not isinstance(value, str):
        raise InvalidRequestError(f"{grammar.kind} takes a text, not {value!r:.80}", "grammar")
    if grammar.kind == "regex":
        return str(llguidance.LLMatcher.grammar_from_regex(value))
    if grammar.kind == "lark":
        return str(llguidance.LLMatcher.grammar_from_lark(value))
    if grammar.kind == "json_object":
        value = '{"type": "object"}'
    return str(llguidance.LLMatcher.grammar_from_json_schema(_schema(value), overrides=JSON_FORM))


def _schema(text: str) -> str:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the JSON schema is not JSON: {error}", "grammar") from error
    if not isinstance(schema, dict):
        raise InvalidRequestError(f"a JSON schema must be an object, got {schema!r:.80}", "grammar")
    check_schema(schema)
    return text
