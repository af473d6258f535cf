"""A stand-in for the network whose next token is a function of the whole context as read through the pages.

A page mixed up, a row lost or a neighbour's token seen changes every token that follows, so engine tests can compare
whole answers with `expected_output`, which needs no engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from longsight.engine.grammar import GrammarCompiler
from longsight.engine.sampler import Logits, Rows, Sampled, sample
from longsight.model.tokenizer import byte_characters
from longsight.ops import Batch, reference
from longsight.ops.cost import AttentionShape, ModelShape

BLOCK = 16
VOCAB = 251
EOS = 250


@dataclass
class FakeConfig:
    vocab_size: int = VOCAB
    block_size: int = BLOCK
    max_position_embeddings: int = 4096
    eos_token_ids: tuple[int, ...] = (EOS,)

    def page_bytes(self, dtype: torch.dtype | None = None) -> int:
        return BLOCK * 8

    def shape(self) -> ModelShape:
        return ModelShape(AttentionShape(1, 1, 16, 16, BLOCK, 3), 1, 1, 1000)


@dataclass
class FakePages:
    """slots [pages, BLOCK]: the token that lies in each; a page never written is poison, so any stale read shows."""

    slots: Tensor

    def copy_page(self, source: int, target: int) -> None:
        self.slots[target] = self.slots[source]


class FakeBackend:
    NAME = "fake"
    likeliest = staticmethod(reference.likeliest)

    def screens(self, dtype: torch.dtype, tokens: int) -> bool:
        return False


@dataclass
class FakeModel:
    """seconds: how long a forward pass takes (asleep, as compiled kernels are for the interpreter). before: called with
    the step's token ids first, and may raise."""

    config: FakeConfig = field(default_factory=FakeConfig)
    dtype: torch.dtype = torch.float32
    seconds: float = 0.0
    before: Callable[[list[int]], None] | None = None
    backend: FakeBackend = field(default_factory=FakeBackend)
    backend_reason: str = "a test"
    weight_bytes: int = 0

    def allocate_cache(self, pages: int, *, screened: bool = False) -> list[FakePages]:
        return [FakePages(torch.full((pages, BLOCK), -(10**9), dtype=torch.long))]

    def forward(
        self,
        token_ids: Tensor,
        batch: Batch,
        cache: Sequence[FakePages],
        *,
        logit_rows: Tensor | None = None,
        on_select: Callable[[int, Tensor], Tensor | None] | None = None,
    ) -> Tensor:
        if self.before is not None:
            self.before(token_ids.tolist())
        if self.seconds:
            time.sleep(self.seconds)
        pages = cache[0].slots
        positions, owners = batch.positions.long(), batch.row_sequence.long()
        pages[batch.block_table[owners, positions // BLOCK].long(), positions % BLOCK] = token_ids
        if on_select is not None:
            for layer in (1, 2):
                on_select(layer, torch.stack([positions // BLOCK, torch.full_like(positions, -1)], -1)[:, None].int())
        rows = range(len(token_ids)) if logit_rows is None else logit_rows.tolist()
        logits = torch.zeros(len(rows), self.config.vocab_size)
        for i, row in enumerate(rows):
            length = int(positions[row]) + 1
            table = batch.block_table[owners[row], : -(-length // BLOCK)].long()
            logits[i, self.next(pages[table].flatten()[:length].tolist())] = 5.0
        return logits

    def next(self, context: list[int]) -> int:
        return next_token(context)


class LookupModel(FakeModel):
    """Goes on as the text did after the last earlier place that reads like the last four bytes; ends if none does."""

    def next(self, context: list[int]) -> int:
        text = bytes(t for t in context if t < EOS)
        place = text.rfind(text[-4:], 0, len(text) - 1)
        return text[place + 4] if place >= 0 else EOS


class ScriptedModel(FakeModel):
    """Says what it is told to, token by token, in MiniMax-M3's own chat format.

    script: from the text of the prompt to the whole answer, markup included. context: the most tokens of a request.
    """

    def __init__(self, script: Callable[[str], str], *, context: int = 8192, **options: Any) -> None:
        super().__init__(FakeConfig(max_position_embeddings=context), **options)
        self.script = script
        self.prompts: list[str] = []
        self._answers: dict[str, bytes] = {}

    def next(self, context: list[int]) -> int:
        text = bytes(context).replace(bytes([EOS]), b"")  # in C: agents' prompts have a hundred thousand bytes
        begin = text.rfind(OPENED) + len(OPENED)
        prompt = text[:begin].decode(errors="replace")
        if prompt not in self._answers:
            self.prompts.append(prompt)
            self._answers[prompt] = self.script(prompt).encode()
        written = len(text) - begin
        # What the prompt already begins to say (a thinking marker) is part of the generated turn here.
        answer = self._answers[prompt]
        for opener in PREFILLED:
            if text[begin:].startswith(opener) and not answer.startswith(opener):
                written -= len(opener)
        return answer[written] if written < len(answer) else EOS


OPENED = b"]~b]ai\n"
PREFILLED = (b"</mm:think>", b"<mm:think>")


def next_token(context: Sequence[int]) -> int:
    """Never EOS by itself; the same whatever way the context was cut into chunks."""
    return sum((i % 7 + 1) * token for i, token in enumerate(context)) % EOS


def expected_output(prompt: Sequence[int], tokens: int) -> list[int]:
    context = list(prompt)
    for _ in range(tokens):
        context.append(next_token(context))
    return context[len(prompt) :]


def byte_grammars() -> GrammarCompiler:
    """Compiles grammars for the tokens below: bytes, and an end."""
    vocabulary = {character: byte for byte, character in byte_characters().items()}
    library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return GrammarCompiler(library.to_str(), vocab_size=VOCAB, eos_token_ids=(EOS,))


class ByteTokenizer:
    """Token id = byte, as in the constructed checkpoint."""

    added_tokens: ClassVar[dict[str, int]] = {}

    def encode_plain(self, text: str) -> list[int]:
        return list(text.encode())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [byte_characters()[i] for i in ids]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


def sample_rows(logits: Tensor, entries: Sequence[Rows]) -> list[list[Sampled] | Exception]:
    """Sample from fp32 logits [R, vocab] as from a step's."""
    return sample(Logits(logits, *reference.likeliest(logits)), entries)
