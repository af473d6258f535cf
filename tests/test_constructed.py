"""Known answers: the constructed model finds one sentence anywhere, and only through the right block."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLConfig
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3SparseForConditionalGeneration

from longsight.model import Model, load_model
from longsight.model.constructed import constructed_path, write_constructed
from longsight.model.constructed_weights import HIDDEN, token_codes
from longsight.model.errors import CheckpointError
from longsight.model.needle import COLOURS, OBJECTS, NeedleError, NeedlePrompt, hide_needle
from longsight.ops import Batch
from oracle import VISION, run

BLOCK = 128


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_constructed(tmp_path_factory.mktemp("constructed"))


@pytest.fixture(scope="session", params=[torch.bfloat16, torch.float32], ids=str)
def model(request: pytest.FixtureRequest, checkpoint: Path) -> Model:
    return load_model(checkpoint, dtype=request.param)


def haystack(size: int) -> str:
    """Real text: sources of torch, in a fixed order, repeated if need be."""
    parts: list[str] = []
    for path in sorted(Path(torch.__file__).parent.rglob("*.py")):
        parts.append(path.read_text(encoding="utf-8", errors="ignore"))
        if sum(map(len, parts)) >= size:
            break
    return "".join(parts)


def answers(
    model: Model, prompts: Sequence[str], tokens: int, *, chunk: int = 2048, forbid: int | None = None
) -> tuple[list[str], list[Tensor]]:
    """Greedy answers of several prompts of one length, run as one batch, and layer 1's ids at the first answer token.

    forbid: a block that layer 1 may not use (its id is replaced by the one before it, or dropped).
    """
    length = len(prompts[0])
    blocks = -(-(length + tokens) // BLOCK)
    cache = model.allocate_cache(blocks * len(prompts))
    order = torch.randperm(blocks * len(prompts), generator=torch.Generator().manual_seed(1)).tolist()
    pages = [order[i * blocks : (i + 1) * blocks] for i in range(len(prompts))]
    rows = [torch.tensor(list(prompt.encode())) for prompt in prompts]
    chosen: list[Tensor] = []

    def on_select(layer: int, ids: Tensor) -> Tensor | None:
        if layer == 1:
            chosen.append(ids.clone())
            if forbid is not None:
                return without(ids, forbid)
        return None

    logits = torch.empty(0)
    step = max(chunk // len(prompts), 1)
    for start in range(0, length, step):
        end = min(start + step, length)
        batch = Batch.build([(end - start, end, p) for p in pages])
        last = end == length
        wanted = [(i + 1) * (end - start) - 1 for i in range(len(prompts))] if last else []
        logits = model.forward(
            torch.cat([row[start:end] for row in rows]),
            batch,
            cache,
            logit_rows=torch.tensor(wanted, dtype=torch.long),
            on_select=on_select if last else None,
        )
    out: list[list[int]] = [[] for _ in prompts]
    for i in range(tokens):
        best = logits.argmax(-1)
        for answer, token in zip(out, best.tolist(), strict=True):
            answer.append(token)
        if i + 1 < tokens:
            batch = Batch.build([(1, length + i + 1, p) for p in pages])
            logits = model.forward(best, batch, cache, on_select=on_select)
    per_prompt = chosen[0].unflatten(0, (len(prompts), -1))[:, -1]
    return [bytes(t for t in a if t < 256).decode(errors="replace") for a in out], list(per_prompt)


def without(ids: Tensor, block: int) -> Tensor:
    """The same selection with one block taken out of every list."""
    big = torch.iinfo(torch.int32).max
    kept = torch.where((ids < 0) | (ids == block), torch.full_like(ids, big), ids).sort(-1).values
    return torch.where(kept == big, torch.full_like(kept, -1), kept)


def assert_found(model: Model, prompts: Sequence[NeedlePrompt]) -> None:
    texts, ids = answers(model, [p.text for p in prompts], len(prompts[0].answer))
    for prompt, text, chosen in zip(prompts, texts, ids, strict=True):
        assert text == prompt.answer, prompt.needle
        # The token that follows the match is the answer's first; its block must have been chosen.
        wanted = (prompt.needle[0] + len(prompt.question)) // BLOCK
        assert wanted in chosen.flatten().tolist()
        assert len(prompt.text) > 16 * BLOCK


def test_needles_at_every_depth(model: Model) -> None:
    text = haystack(8192)
    prompts = [hide_needle(text, 4096, depth / 11, seed=depth, distractors=3) for depth in range(12)]
    assert_found(model, prompts)


def test_needles_at_every_position_within_a_block(model: Model) -> None:
    """A little more than 16 blocks, on the grid and off it, the needle in block 2 or 3: read only if it is chosen."""
    text = haystack(8192)
    # In fp32, every third place: 3 has no divisor in common with the kernels' tiles, so no lane is left out.
    offsets = torch.arange(BLOCK)[:: 1 if model.dtype == torch.bfloat16 else 3]
    seen: set[int] = set()
    for size, part in zip((2304, 2305, 2350, 2431), offsets.tensor_split(4), strict=True):
        prompts = [hide_needle(text, size, 0, seed=o, offset=2 * BLOCK + o) for o in part.tolist()]
        seen |= {p.needle[0] % BLOCK for p in prompts}
        assert_found(model, prompts)
    assert len(seen) == len(offsets)


def test_the_answer_is_lost_with_its_block(model: Model) -> None:
    prompt = hide_needle(haystack(8192), 4096, 0.4, seed=3)
    first = prompt.needle[0] + len(prompt.question)
    assert answers(model, [prompt.text], 1)[0] == [prompt.answer[0]]
    assert answers(model, [prompt.text], 1, forbid=first // BLOCK)[0] != [prompt.answer[0]]


def test_64k(model: Model) -> None:
    prompt = hide_needle(haystack(1 << 16), 1 << 16, 0.35, seed=9, distractors=3)
    assert_found(model, [prompt])


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("depth", [0.0, 0.37, 0.9])
def test_a_million_tokens(checkpoint: Path, depth: float) -> None:
    prompt = hide_needle(haystack(1 << 20), 1 << 20, depth, seed=5, distractors=3)
    assert_found(load_model(checkpoint), [prompt])


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_several_groups(tmp_path: Path, kv_heads: int) -> None:
    """Up to MiniMax-M3's own 64 query heads over 4 key/value heads."""
    model = load_model(write_constructed(tmp_path, kv_heads=kv_heads))
    text = haystack(8192)
    assert_found(model, [hide_needle(text, 2600, depth, seed=7, distractors=2) for depth in (0.0, 0.31)])


def test_transformers_agrees(checkpoint: Path) -> None:
    """transformers' vision-language class reads the files as they lie on disk and computes the same in fp32: block
    sets, every logit, and the answer."""
    prompt = hide_needle(haystack(8192), 2600, 0.3, seed=4, distractors=3)
    tokens = torch.tensor(list((prompt.text + prompt.answer).encode()))
    theirs, chosen = run(transformers_model(checkpoint), tokens)
    # The answer's characters are predicted by the rows before them.
    assert bytes(theirs.argmax(-1)[-len(prompt.answer) - 1 : -1].tolist()).decode() == prompt.answer

    model = load_model(checkpoint, dtype=torch.float32)
    blocks = -(-len(tokens) // BLOCK)
    ids: dict[int, Tensor] = {}
    ours = model.forward(
        tokens,
        Batch.build([(len(tokens), len(tokens), range(blocks))]),
        model.allocate_cache(blocks),
        on_select=lambda layer, chosen: ids.update({layer: chosen.clone()}),
    )
    assert torch.equal(ids[0], chosen.blocks[0])
    # Equal pasts are equal keys, so the last of the 16 places is now and then a tie, which transformers settles as it
    # likes: a row may differ in one block, and few rows may.
    common = (ids[1][:, 0, :, None] == chosen.blocks[1][:, 0, None, :]).any(-1).sum(-1)
    assert int(common.min()) >= model.config.topk_blocks - 1
    assert int((common < model.config.topk_blocks).sum()) <= 0.02 * (len(tokens) - 16 * BLOCK)
    # The softmax turns rounding of scores up to 3,000 into differences of the output: 5e-7 is typical, 0.02 the worst.
    difference = (ours - theirs).abs()
    assert float(difference.max()) < 0.05
    assert float(difference.median()) < 1e-5
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def transformers_model(checkpoint: Path) -> Any:
    """The published class; only the vision tower, which the checkpoint has not, is made up (and small)."""
    outer = MiniMaxM3VLConfig.from_pretrained(checkpoint, vision_config=VISION, projector_hidden_size=HIDDEN)
    model, report = MiniMaxM3SparseForConditionalGeneration.from_pretrained(
        checkpoint, config=outer, dtype=torch.float32, output_loading_info=True
    )
    assert all(
        key.startswith(("model.vision_tower.", "model.multi_modal_projector.")) for key in report["missing_keys"]
    )
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model.eval()


def test_the_files_are_the_same_every_time_and_small(checkpoint: Path, tmp_path: Path) -> None:
    again = write_constructed(tmp_path / "again")
    names = sorted(p.name for p in checkpoint.iterdir())
    assert names == sorted(p.name for p in again.iterdir())
    for name in names:
        digests = {hashlib.sha256((d / name).read_bytes()).hexdigest() for d in (checkpoint, again)}
        assert len(digests) == 1, name
    assert sum(p.stat().st_size for p in checkpoint.iterdir()) < 20e6


def test_codes_are_nearly_orthogonal() -> None:
    codes = token_codes()
    assert bool((codes.abs() == 1).all())
    assert bool((codes[:, 0] == 1).all())
    correlation = codes @ codes.T / 128 - torch.eye(len(codes))
    assert float(correlation.abs().max()) == 0.125


def test_the_cached_checkpoint_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = constructed_path()
    assert path.is_relative_to(tmp_path)
    files = {p.name: p.read_bytes() for p in path.iterdir()}
    stamp = (path / "config.json").stat().st_mtime_ns
    assert constructed_path() == path
    assert (path / "config.json").stat().st_mtime_ns == stamp  # not written again
    (path / "tokenizer.json").unlink()
    assert constructed_path() == path
    assert {p.name: p.read_bytes() for p in path.iterdir()} == files
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing is left beside it


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="XDG_CACHE_HOME"):
        constructed_path()


def test_a_prompt_has_its_needle_where_it_says() -> None:
    text = "some text without the sentence. " * 40
    for kwargs in (
        {"depth": 0.0},
        {"depth": 1.0},
        {"depth": 0.5, "distractors": 1},
        {"depth": 0.4, "offset": 1},
        {"depth": 0.4, "offset": 900, "distractors": 3},
    ):
        prompt = hide_needle(text, 1500, **kwargs)  # type: ignore[arg-type]
        first, end = prompt.needle
        assert len(prompt.text) == 1500
        assert prompt.text[first:end] == prompt.question + prompt.answer
        assert prompt.text.endswith("\n" + prompt.question)
        assert prompt.text.count(prompt.question) == 2
        assert prompt.text.count("The secret code") == 2 + kwargs.get("distractors", 0)
        assert first == kwargs.get("offset", first)


@pytest.mark.parametrize(
    ("haystack", "size", "kwargs"),
    [
        ("", 500, {"depth": 0.5}),
        ("text", 50, {"depth": 0.5}),
        ("text", 500, {"depth": 1.5}),
        ("text", 500, {"depth": float("nan")}),
        ("text", 500, {"depth": 0.5, "offset": 0}),
        ("text", 500, {"depth": 0.5, "offset": 480}),
        ("text", 500, {"depth": 0.5, "distractors": -1}),
        ("text", 9999, {"depth": 0.5, "distractors": 64}),
    ],
)
def test_a_prompt_that_cannot_be_built(haystack: str, size: int, kwargs: dict[str, Any]) -> None:
    with pytest.raises(NeedleError):
        hide_needle(haystack, size, **kwargs)


def test_no_two_subjects_end_alike_within_the_window() -> None:
    """The last 15 characters before the answer differ early enough for bf16, whatever two subjects a prompt has."""
    ends = {f"The secret code for the {colour} {thing} is "[-14:] for colour in COLOURS for thing in OBJECTS}
    assert len(ends) == len(COLOURS) * len(OBJECTS)
