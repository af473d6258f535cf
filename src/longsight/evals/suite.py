"""A model through a suite: every task at every length under every attention, kept on the disk cell by cell."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch

from longsight.evals import intervals
from longsight.evals.asking import Asked, ask, build_engine
from longsight.evals.chat import chat_frame
from longsight.evals.errors import EvalError
from longsight.evals.haystack import Document, Haystack
from longsight.evals.reading import answer_log_likelihoods, cut_documents, loss_by_position
from longsight.evals.recall import recall
from longsight.evals.sample import Sample
from longsight.evals.tasks import TEXT_TASKS, QaItem, TextWorld
from longsight.evals.variants import StaticModel, Variant
from longsight.model import Model, ModelConfig
from longsight.model.fingerprint import fingerprint
from longsight.model.tokenizer import Tokenizer
from longsight.train.checkpoint import replace
from longsight.train.recall import Vocabulary

RECALL = "recall"
SUITES: dict[str, tuple[str, ...]] = {"ruler": tuple(TEXT_TASKS), "recall": (RECALL,), "loss": ()}
FILE = "results.json"
PROMPTS = 2  # raise it when the same settings give other prompts: results of the older ones are not added to
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# what runs, prompts and documents done, of how many
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvalSettings:
    """tasks: of TEXT_TASKS, or "recall". lengths: tokens of prompt and answer together. trials: prompts per task and
    length; prompt i of a length asks at depth DEPTHS[i % 5]. prompt_tokens: 0, or the most that the prompts of one task
    and length may have together: longer prompts are then fewer, though never fewer than one of each depth.
    loss_length: 0 = no loss by position; else documents of so many tokens, `loss_documents` of them. likelihood: also
    the log-probability of the answers. chat_template: ask text tasks through the checkpoint's chat template if it has
    one, as the model is served; else, and for checkpoints without, have it continue a sentence.
    """

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    trials: int = 20
    prompt_tokens: int = 0
    seed: int = 0
    variants: tuple[Variant, ...] = (Variant(),)
    likelihood: bool = False
    loss_length: int = 0
    loss_documents: int = 8
    recall: Vocabulary = field(default_factory=Vocabulary)
    dtype: str | None = None
    chat_template: bool = True

    def __post_init__(self) -> None:
        known = (*TEXT_TASKS, RECALL)
        for task in self.tasks:
            if task not in known:
                raise EvalError(f"no task is called {task!r}; there are {', '.join(known)}")
        if self.prompt_tokens < 0:
            raise EvalError(f"prompt_tokens is {self.prompt_tokens}; it must be at least 0")
        for name in ("trials", "loss_documents"):
            if getattr(self, name) < 1:
                raise EvalError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if any(length < 16 for length in self.lengths):
            raise EvalError(f"lengths are {list(self.lengths)}; each must be at least 16 tokens")
        if not (self.tasks and self.lengths) and not self.loss_length:
            raise EvalError("nothing to do: give tasks and lengths, or a loss length")

    def trials_at(self, length: int) -> int:
        """Prompts of this length."""
        if not self.prompt_tokens:
            return self.trials
        return min(self.trials, max(self.prompt_tokens // length, len(DEPTHS)))


@dataclass(frozen=True)
class Texts:
    """documents: haystack, and what qa quotes. qa: pairs of its own. loss: what loss by position is measured on."""

    documents: Sequence[Document] = ()
    qa: Sequence[QaItem] = ()
    loss: Sequence[Document] = ()


def evaluate(
    path: str | Path,
    settings: EvalSettings,
    out: Path,
    *,
    texts: Texts | None = None,
    backend: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run what `out`/results.json does not hold yet, and return all of it (see docs/evals.md for its keys).

    A file of other settings or another checkpoint is refused with EvalError. Raises what loading and the engine raise.
    """
    path, texts = Path(path), texts or Texts()
    tokenizer = _tokenizer(path, settings)
    out.mkdir(parents=True, exist_ok=True)
    asks = settings.chat_template and any(task in TEXT_TASKS for task in settings.tasks)
    frame = chat_frame(path, tokenizer) if tokenizer and asks else None
    results = _open(out / FILE, _about(path, settings, texts, frame is not None))
    world = TextWorld(Haystack(tokenizer, texts.documents), _bos(path), texts.qa, frame) if tokenizer else None
    runs = [_Run(path, settings, variant, tokenizer, world, texts, backend) for variant in settings.variants]
    total, done = sum(part.units for run in runs for part in run.parts()), 0
    for run in runs:
        for part in run.parts():
            key = {"attention": run.variant.name, "part": part.name}
            known = [p for p in results["parts"] if p.items() >= key.items()]
            if not known or "skipped" in known[0]:

                def advance(units: int, part: Part = part, run: _Run = run, done: int = done) -> None:
                    if progress is not None:
                        progress(f"{run.variant.name}, {part.name}", done + units, total)

                advance(0)
                started = time.perf_counter()
                entry = key | part.work(advance)
                entry["seconds"] = round(time.perf_counter() - started, 3)
                results["parts"] = [p for p in results["parts"] if p not in known] + [entry]
                _write(out / FILE, results)
            done += part.units
        run.close()
    return results


@dataclass(frozen=True)
class Part:
    """What is run and kept as one. units: of progress; work tells how many are done and returns what to keep."""

    name: str
    units: int
    work: Callable[[Callable[[int], None]], dict[str, Any]]


class _Run:
    """One variant. The model is loaded when the first part that is missing needs it."""

    def __init__(
        self,
        path: Path,
        settings: EvalSettings,
        variant: Variant,
        tokenizer: Tokenizer | None,
        world: TextWorld | None,
        texts: Texts,
        backend: str | None,
    ) -> None:
        self.path, self.settings, self.variant = path, settings, variant
        self.tokenizer, self.world, self.texts, self.backend = tokenizer, world, texts, backend
        self._model: Model | None = None

    def model(self, length: int) -> Model:
        """Loaded once; a static pattern is laid out for the length."""
        settings = self.settings
        if self._model is None:
            dtype = getattr(torch, settings.dtype) if settings.dtype else None
            longest = max(*settings.lengths, settings.loss_length, 0)
            self._model = self.variant.load(
                self.path, longest=longest, dtype=dtype, backend=self.backend, seed=settings.seed
            )
        if isinstance(self._model, StaticModel):
            self._model.static_policy = self.variant.policy(self._model.config, length, settings.seed)
        return self._model

    def close(self) -> None:
        self._model = None

    def parts(self) -> Iterator[Part]:
        settings = self.settings
        for length in settings.lengths:
            for task in settings.tasks:
                yield Part(f"{task} at {length}", settings.trials_at(length), partial(self.task, task, length))
        if settings.loss_length:
            yield Part(f"loss at {settings.loss_length}", settings.loss_documents, self.loss)

    def task(self, task: str, length: int, advance: Callable[[int], None]) -> dict[str, Any]:
        samples = self.samples(task, length)
        try:
            first = next(samples)
        except EvalError as error:  # too short for this task, or no documents: said in the table, no reason to end
            return {"task": task, "length": length, "skipped": str(error)}
        model = self.model(length)
        engine = build_engine(model, self.tokenizer, length)
        asked: list[Asked] = []
        try:
            for answered in ask(engine, chain([first], samples), model.config.block_size):
                asked.append(answered)
                advance(len(asked))
        finally:
            engine.close()
        read = [float(r) for a in asked for r in a.read if r is not None]
        entry = {
            "task": task,
            "length": length,
            "accuracy": intervals.accuracy([a.scores for a in asked]).to_dict(),
            "questions": sum(len(a.scores) for a in asked),
            "evidence_read": sum(read) / len(read) if read else None,
            "by_depth": _by_depth(asked),
            **_pattern(model),
        }
        if self.settings.likelihood:
            found = [answer_log_likelihoods(model, sample) for sample in self.samples(task, length)]
            entry["log_likelihood"] = intervals.mean([sum(f) / len(f) for f in found]).to_dict()
        return entry

    def samples(self, task: str, length: int) -> Iterator[Sample]:
        """The same ones for every model and variant. Raises EvalError where the length does not suffice."""
        for trial in range(self.settings.trials_at(length)):
            rng = random.Random(f"{self.settings.seed}/{task}/{length}/{trial}")
            if task == RECALL:
                yield recall(self.settings.recall, rng, length)
            else:
                assert self.world is not None  # _tokenizer saw to it
                yield TEXT_TASKS[task](self.world, rng, length, DEPTHS[trial % len(DEPTHS)])

    def loss(self, advance: Callable[[int], None]) -> dict[str, Any]:
        assert self.tokenizer is not None  # _tokenizer saw to it
        length, count = self.settings.loss_length, self.settings.loss_documents
        documents = self.texts.loss or self.texts.documents
        tokens = [t for d in documents for t in self.tokenizer.encode_plain("".join(d.pieces))]
        model = self.model(length)
        buckets = loss_by_position(model, cut_documents(tokens, length, count, _bos(self.path)), advance)
        return {
            "length": length,
            "documents": count,
            "loss": [{"first": b.first, "last": b.last, **b.loss.to_dict()} for b in buckets],
            **_pattern(model),
        }


def _pattern(model: Model) -> dict[str, Any]:
    return {"static": asdict(model.static_policy)} if isinstance(model, StaticModel) else {}


def _by_depth(asked: Sequence[Asked]) -> dict[str, dict[str, float | None]]:
    """Accuracy of the first question of the prompts at each depth."""
    depths = sorted({a.sample.depth for a in asked if a.sample.depth is not None})
    return {
        f"{depth:g}": intervals.accuracy([a.scores[:1] for a in asked if a.sample.depth == depth]).to_dict()
        for depth in depths
    }


def _tokenizer(path: Path, settings: EvalSettings) -> Tokenizer | None:
    """None where only tokens are asked about, and the vocabulary holds them."""
    vocabulary = ModelConfig.from_file(path).vocab_size
    if RECALL in settings.tasks and vocabulary < settings.recall.size:
        raise EvalError(f"recall needs a vocabulary of {settings.recall.size}; that of {path} has {vocabulary}")
    if set(settings.tasks) <= {RECALL} and not settings.loss_length:
        return None
    return Tokenizer.from_dir(path)


def _bos(path: Path) -> int | None:
    return ModelConfig.from_file(path).bos_token_id


def _about(path: Path, settings: EvalSettings, texts: Texts, in_chat: bool) -> dict[str, Any]:
    """What results depend on, except which parts have been asked for so far."""
    digest = sha256(repr((texts.documents, texts.qa, texts.loss)).encode()).hexdigest()
    return {
        "checkpoint": fingerprint(path).hex(),
        "prompts": PROMPTS,
        "trials": settings.trials,
        **({"chat_template": True} if in_chat else {}),
        **({"prompt_tokens": settings.prompt_tokens} if settings.prompt_tokens else {}),
        "seed": settings.seed,
        "likelihood": settings.likelihood,
        "loss_documents": settings.loss_documents,
        "dtype": settings.dtype,
        "texts": digest,
        "recall": asdict(settings.recall),
    }


def _open(file: Path, about: dict[str, Any]) -> dict[str, Any]:
    if not file.exists():
        return {"about": about, "parts": []}
    try:
        results: dict[str, Any] = json.loads(file.read_bytes())
        theirs = results["about"]
        differing = [name for name in about | theirs if theirs.get(name) != about.get(name)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EvalError(f"{file} holds no results of an evaluation; delete it, or use another directory") from error
    if differing:
        raise EvalError(
            f"{file} holds results of other settings ({', '.join(differing)}); use another directory, or delete it"
        )
    return results


def _write(file: Path, results: dict[str, Any]) -> None:
    """A run that is killed leaves the whole of the last one."""
    text = f"{json.dumps(results, indent=1)}\n".encode()

    def write(out: BinaryIO) -> None:
        out.write(text)

    replace(file, write)
