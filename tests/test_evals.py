"""Evaluation: tasks that are what they say, scores and intervals that are right, and a model with known answers."""

from __future__ import annotations

import json
import random
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import image
from scipy import stats

from longsight.chat.messages import ChatMessage
from longsight.chat.prompt import ChatFormat
from longsight.chat.template import ChatTemplate
from longsight.cli.main import main
from longsight.evals import (
    EvalError,
    EvalSettings,
    Question,
    Sample,
    Variant,
    evaluate,
    filler,
    intervals,
    reading,
    tasks,
)
from longsight.evals.asking import ask, build_engine
from longsight.evals.chat import chat_frame
from longsight.evals.haystack import Document, Haystack, read_documents
from longsight.evals.recall import recall
from longsight.evals.report import markdown
from longsight.evals.sample import begins_with, equals, finds, mentions
from longsight.evals.suite import FILE, Texts
from longsight.model import ModelConfig, load_model
from longsight.model.built_in import EMBEDDED_DIR
from longsight.model.tokenizer import Tokenizer
from longsight.ops import Batch
from longsight.train.recall import Vocabulary

DOCS = Path(__file__).parents[1] / "docs"
STORY = "".join(
    f"On day {i} the {noun} near the old mill was repaired by a person called number {i * 37 % 101}. It rained.\n"
    for i, noun in enumerate(["gate", "roof", "wall", "pump", "road", "fence", "barn", "wheel"] * 40)
)


@pytest.fixture(scope="module")
def tokenizer(constructed: Path) -> Tokenizer:
    return Tokenizer.from_dir(constructed)


@pytest.fixture(scope="module")
def world(tokenizer: Tokenizer) -> tasks.TextWorld:
    return tasks.TextWorld(Haystack(tokenizer, [Document.of_text("story.txt", STORY)]), bos=256)


# Intervals


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (8, 10), (10, 10), (1, 1), (97, 300)])
def test_wilson(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert intervals.wilson(successes, trials) == pytest.approx((expected.low, expected.high))


def test_accuracy_counts_what_is_independent() -> None:
    """Questions that agree within each prompt are worth no more than one; such that do not, their number."""
    alike = intervals.accuracy([[1.0] * 10] * 5 + [[0.0] * 10] * 5)
    assert (alike.low, alike.high) == pytest.approx(intervals.wilson(5, 10))
    mixed = intervals.accuracy([[1.0, 0.0] * 5] * 10)
    assert (mixed.low, mixed.high) == pytest.approx(intervals.wilson(50, 100))
    assert mixed.value == alike.value == 0.5
    assert intervals.accuracy([[1.0] * 20]).low < 0.25  # a single prompt says little
    assert intervals.accuracy([]).n == 0


def test_means_and_pairs() -> None:
    ours, theirs = [2.01, 2.52, 1.93], [2.00, 2.50, 1.95]
    found = intervals.paired(ours, theirs)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert intervals.mean([1.0]).to_dict() == {"value": 1.0, "low": None, "high": None, "n": 1}
    spread = intervals.bootstrap(ours)
    assert min(ours) <= spread.low < spread.value < spread.high <= max(ours)
    assert spread == intervals.bootstrap(ours)
    assert intervals.bootstrap([1.0]) == intervals.mean([1.0])


# Scores


def test_scores() -> None:
    right = begins_with(["12345", "four"])
    assert [right((), text) for text in (" 12345.", "12345", "four and", "123456", "x 12345", "fourteen", "")] == [
        1, 1, 1, 0, 0, 0, 0,
    ]  # fmt: skip
    assert finds(["11", "22", "33"])((), " 22, 11 and 334") == pytest.approx(2 / 3)
    assert equals([(1, 2)])([1, 2], "") == 1
    assert equals([(1, 2)])([1, 2, 3], "") == 0


def test_an_answer_in_a_chat_names_what_was_asked_for() -> None:
    right = mentions(["12345", "four (4)"])
    answers = ["The code is 12345.", "12345", "It is four (4)!", "123456", "x12345", "four", ""]
    assert [right((), text) for text in answers] == [1, 1, 1, 0, 0, 0, 0]


# Tasks


@pytest.mark.parametrize("task", tasks.TEXT_TASKS)
def test_prompts_are_as_long_as_asked_and_hold_their_evidence(
    task: str, world: tasks.TextWorld, tokenizer: Tokenizer
) -> None:
    for length, depth in ((1500, 0.0), (4001, 0.5), (4002, 1.0)):
        sample = tasks.TEXT_TASKS[task](world, random.Random(f"{task}{length}"), length, depth)
        again = tasks.TEXT_TASKS[task](world, random.Random(f"{task}{length}"), length, depth)
        assert (again.context, [q.tokens for q in again.questions]) == (
            sample.context,
            [q.tokens for q in sample.questions],
        )
        longest = max(len(q.tokens) + q.max_tokens for q in sample.questions)
        if task in ("common", "frequent"):
            assert length - 10 <= len(sample.context) + longest <= length
        else:
            assert len(sample.context) + longest == length
        assert sample.context[0] == 256
        for question in sample.questions:
            answer = tokenizer.decode(question.answers[0])
            assert question.score(question.answers[0], answer) == 1
            assert question.score((), " nothing like it") == 0
            assert len(question.answers[0]) < question.max_tokens
            text = " ".join(tokenizer.decode(sample.context[a:b]) for a, b in question.evidence)
            for word in answer.replace(",", "").replace(" and ", " ").split():
                assert word in (text or tokenizer.decode(sample.context))
        if sample.depth is not None:
            first = sample.questions[0].evidence[0][0]
            assert first / len(sample.context) == pytest.approx(depth, abs=0.2)


@pytest.mark.parametrize("task", tasks.TEXT_TASKS)
def test_too_short_for_a_task(task: str, world: tasks.TextWorld) -> None:
    with pytest.raises(EvalError, match="tokens"):
        tasks.TEXT_TASKS[task](world, random.Random(0), 50, 0.5)


def test_tracking_leads_to_its_number(world: tasks.TextWorld, tokenizer: Tokenizer) -> None:
    sample = tasks.tracking(world, random.Random(4), 2000, 0.5)
    lines = [line for line in tokenizer.decode(sample.context).splitlines() if line.startswith("The value of")]
    value = {line.split()[3]: line.rstrip(".").split()[-1] for line in lines}
    assert len(value) == 2 * (tasks.HOPS + 1)
    name = tokenizer.decode(sample.questions[0].tokens).split()[-2]
    steps = 0
    while name in value:
        name, steps = value[name], steps + 1
    assert steps == tasks.HOPS + 1
    assert f" {name}" == tokenizer.decode(sample.questions[0].answers[0])


def test_counted_words_are_the_commonest(world: tasks.TextWorld, tokenizer: Tokenizer) -> None:
    for task in (tasks.common, tasks.frequent):
        sample = task(world, random.Random(1), 3000, 0.5)
        words = tokenizer.decode(sample.context).split()
        counts = sorted(((words.count(word), word) for word in set(words)), reverse=True)
        asked = tokenizer.decode(sample.questions[0].answers[0]).replace(",", "").replace(" and ", " ").split()
        assert {word for _, word in counts[: len(asked)]} == set(asked)
        assert counts[len(asked) - 1][0] > counts[len(asked)][0]


def test_words_too_long_to_count_are_drawn_again(world: tasks.TextWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, draws = filler.coined_words, list[int]()

    def first_too_long(rng: random.Random, count: int) -> list[str]:
        draws.append(count)
        words = draw(rng, count)
        return [word * 50 for word in words] if len(draws) == 1 else words

    monkeypatch.setattr(filler, "coined_words", first_too_long)
    assert tasks.common(world, random.Random(1), 3000, 0.5).context
    assert len(draws) == 2


def test_questions_and_answers_of_ones_own(tokenizer: Tokenizer) -> None:
    item = tasks.QaItem("The mill was built in 1802 by Ann Ware.", "Who built the mill?", ("Ann Ware", "Ware"))
    world = tasks.TextWorld(Haystack(tokenizer, [Document.of_text("story.txt", STORY)]), qa=[item])
    sample = tasks.qa(world, random.Random(0), 600, 0.5)
    (question,) = sample.questions
    assert item.document in tokenizer.decode(sample.context)
    assert tokenizer.decode(question.tokens).endswith("Question: Who built the mill?\nAnswer:")
    assert question.score((), " Ware.\n") == 1


def test_documents_lose_nothing(tmp_path: Path) -> None:
    text = "One. Two!\n\nThree? " + "x" * 1000 + "\nlast"
    assert "".join(Document.of_text("t", text).pieces) == text
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.bin").write_text("no")
    assert [d.title for d in read_documents([tmp_path])] == ["a.txt"]
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(EvalError, match=r"c\.txt"):
        read_documents([tmp_path])


def test_recall() -> None:
    vocabulary = Vocabulary(5, 6, 40)
    for length in (64, 65, 512):
        sample = recall(vocabulary, random.Random(length), length, questions=4)
        assert sample.length in (length, length - 1)
        assert sum(token in vocabulary.key_ids for token in sample.context) == length // 32
        for question in sample.questions:
            ((at, end),) = question.evidence
            assert [*sample.context[at:end]] == [*question.tokens, *question.answers[0]]
            assert sample.context.count(question.tokens[0]) == 1
    with pytest.raises(EvalError, match="40 keys"):
        recall(vocabulary, random.Random(0), 64, needles=41)


# Attention


def test_variants_are_read_or_refused(tiny_checkpoint: Path) -> None:
    assert Variant.parse("k=8,block=32") == Variant("k=8,block=32", topk=8, block_size=32)
    assert Variant.parse("static:window=2,stride=9").stride == 9
    for text in ("sparse", "k=", "k=2,window=1", "static:k=3", "", "dense,k=2"):
        with pytest.raises(EvalError, match="accepted"):
            Variant.parse(text)
    config = ModelConfig.from_file(tiny_checkpoint)
    assert Variant.parse("dense").config(config, 10**5).max_position_embeddings == 10**5
    policy = Variant.parse("static").policy(replace(config, topk_blocks=8), 16 * 1024)
    assert (policy.window, policy.random, policy.anchor_stride) == (4, 2, 512)


def test_every_block_is_dense_and_other_sizes_are_not(tiny_checkpoint: Path) -> None:
    tokens = torch.randint(0, 256, (200,), generator=torch.Generator().manual_seed(0))
    losses = {}
    for name in ("configured", "dense", "k=13", "block=32", "k=2", "static:window=13", "static"):
        model = Variant.parse(name).load(tiny_checkpoint, longest=200)
        losses[name] = reading.Reader(model, 200).losses(tokens, 1)
    for name in ("k=13", "static:window=13"):
        expected = losses["dense"] if name == "k=13" else losses["configured"]
        assert torch.allclose(losses[name][:40], expected[:40], atol=1e-4)
    assert torch.allclose(losses["k=13"], losses["dense"], atol=1e-4)
    for name in ("configured", "block=32", "k=2", "static"):
        assert not torch.allclose(losses[name], losses["dense"], atol=1e-2), name


def test_the_pattern_reaches_the_engine(tiny_checkpoint: Path) -> None:
    """What a request records is the pattern's choice, token by token, in prefill as in decode."""
    model = Variant.parse("static:window=1,stride=4,random=1").load(tiny_checkpoint, longest=200)
    samples = [Sample(recall(Vocabulary(5, 6, 40), random.Random(i), 150).context, ()) for i in range(3)]
    asked = [
        replace(s, questions=(Question([7], ((1,),), 4, equals([(1,)]), ((64, 66), (148, 149))),)) for s in samples
    ]
    engine = build_engine(model, None, 200)
    assert [a.read for a in ask(engine, asked, 16)] == [[True]] * 3  # block 4 is an anchor, 148 is in the window
    blind = [replace(s, questions=(replace(s.questions[0], evidence=((100, 101),)),)) for s in asked]
    model = Variant.parse("static:window=1,stride=4,random=0").load(tiny_checkpoint, longest=200)
    assert [a.read for a in ask(build_engine(model, None, 200), blind, 16)] == [[False]] * 3


# Reading


def test_losses_are_those_of_one_forward_pass(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny_checkpoint)
    tokens = torch.randint(0, 256, (150,), generator=torch.Generator().manual_seed(1))
    cache = model.allocate_cache(10)
    logits = model.forward(tokens, Batch.build([(150, 150, range(10))]), cache)
    expected = -logits.log_softmax(-1)[:-1].gather(1, tokens[1:, None])[:, 0]
    assert torch.allclose(reading.Reader(model, 150).losses(tokens, 1), expected, atol=1e-5)
    monkeypatch.setattr(reading, "LOGIT_BYTES", 4 * 272 * 7)  # seven rows at a time
    assert torch.allclose(reading.Reader(model, 150).losses(tokens, 1), expected, atol=1e-5)
    buckets = reading.loss_by_position(model, [tokens.tolist()] * 2)
    assert [(b.first, b.last) for b in buckets] == [(1, 64), (64, 128), (128, 150)]
    assert [b.loss.value for b in buckets] == pytest.approx(
        [float(expected[a - 1 : b - 1].mean()) for a, b in ((1, 64), (64, 128), (128, 150))], abs=1e-4
    )
    sample = Sample(
        recall(Vocabulary(5, 6, 40), random.Random(0), 140).context,
        tuple(Question((9, 10), answers, 2, finds(["x"])) for answers in (((3, 4),), ((5,), (6, 7)))),
    )
    found = reading.answer_log_likelihoods(model, sample)
    for question, value in zip(sample.questions, found, strict=True):
        alone = []
        for answer in question.answers:
            text = torch.tensor([*sample.context, *question.tokens, *answer])
            alone.append(-float(reading.Reader(model, 200).losses(text, len(text) - len(answer)).sum()))
        assert value == pytest.approx(max(alone), abs=1e-4)


def test_documents_are_cut_evenly() -> None:
    assert reading.cut_documents(range(14), 4, 3, None) == [[0, 1, 2, 3], [5, 6, 7, 8], [10, 11, 12, 13]]
    assert reading.cut_documents(range(10), 4, 2, 99) == [[99, 0, 1, 2], [99, 7, 8, 9]]
    with pytest.raises(EvalError, match="more text"):
        reading.cut_documents(range(10), 6, 2, None)


# The whole


def test_a_model_with_known_answers(constructed: Path, tmp_path: Path, world: tasks.TextWorld) -> None:
    """The constructed model continues what it has seen: it finds needles through the right block or not at all. The
    length is beyond 16 blocks of 128 tokens, where sparse attention is not dense."""
    settings = EvalSettings(
        ("single", "multiquery"),
        (2600,),
        trials=2,
        variants=tuple(map(Variant.parse, ("configured", "static:window=1,random=0", "k=2"))),
    )
    results = evaluate(constructed, settings, tmp_path, texts=Texts(world.haystack.documents))
    found = {(p["attention"], p["task"]): p for p in results["parts"]}
    for variant in ("configured", "k=2"):
        assert found[variant, "single"]["accuracy"]["value"] == 1
        assert found[variant, "single"]["evidence_read"] == 1
        assert found[variant, "multiquery"]["accuracy"]["value"] >= 0.9
    assert found["static:window=1,random=0", "multiquery"]["accuracy"]["value"] <= 0.7
    assert found["static:window=1,random=0", "multiquery"]["evidence_read"] < 1
    assert found["configured", "multiquery"]["questions"] == 2 * tasks.KEYS
    text = markdown(results)
    assert "| single | 1.00 [0.34, 1.00] |" in text
    assert "| single | 1.00 |\n" in text  # evidence read


def test_a_context_is_read_once(constructed: Path, tokenizer: Tokenizer, world: tasks.TextWorld) -> None:
    sample = tasks.multiquery(world, random.Random(0), 1200, 0.5)
    engine = build_engine(load_model(constructed), tokenizer, 1200)
    (asked,) = ask(engine, [sample], 128)
    assert asked.scores == [1.0] * tasks.KEYS
    assert engine.counters.prompt_tokens < 1200 + tasks.KEYS * 150


def test_goes_on_where_it_stopped(constructed: Path, tmp_path: Path) -> None:
    settings = EvalSettings(("single", "qa"), (400,), trials=2, likelihood=True)
    first = evaluate(constructed, settings, tmp_path)
    assert "give files of text" in first["parts"][1]["skipped"]
    assert "Log-probability" in markdown(first)
    assert first["parts"][0]["log_likelihood"]["value"] > -0.1  # nats: it is sure, and right
    kept = json.loads((tmp_path / FILE).read_text())
    kept["parts"][0]["seconds"] = 12345.0
    (tmp_path / FILE).write_text(json.dumps(kept))
    seen: list[tuple[str, int, int]] = []
    more = replace(settings, lengths=(400, 500))
    second = evaluate(constructed, more, tmp_path, progress=lambda *state: seen.append(state))
    assert second["parts"][0]["seconds"] == 12345.0
    assert sorted(p["part"] for p in second["parts"]) == ["qa at 400", "qa at 500", "single at 400", "single at 500"]
    assert ("configured, single at 500", 6, 8) in seen
    for change, name in (({"seed": 1}, "seed"), ({"prompt_tokens": 4000}, "prompt_tokens")):
        with pytest.raises(EvalError, match=rf"other settings \({name}\)"):
            evaluate(constructed, replace(settings, **change), tmp_path)
    for damaged in (b'{"about": ', b"[]", b"{}"):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(EvalError, match="holds no results"):
            evaluate(constructed, settings, tmp_path)


def test_long_prompts_may_be_fewer(constructed: Path, tmp_path: Path) -> None:
    settings = EvalSettings(("single",), (400, 600), trials=8, prompt_tokens=2800)
    results = evaluate(constructed, settings, tmp_path)
    assert [part["questions"] for part in results["parts"]] == [7, 5]  # 2800 / 400; one of each depth
    assert "8 prompts or 2,800 tokens of them per cell" in markdown(results)
    with pytest.raises(EvalError, match=r"other settings \(prompt_tokens\)"):
        evaluate(constructed, replace(settings, prompt_tokens=0), tmp_path)


def test_nothing_is_asked_for_in_vain(constructed: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tasks": ("single", "sing"), "lengths": (400,)}, "sing"),
        ({"tasks": ("single",), "lengths": (4,)}, "at least 16"),
        ({"tasks": ("single",), "lengths": ()}, "nothing to do"),
        ({"tasks": ("single",), "lengths": (400,), "trials": 0}, "trials"),
        ({"tasks": ("single",), "lengths": (400,), "prompt_tokens": -1}, "prompt_tokens is -1"),
    ]
    for arguments, words in cases:
        with pytest.raises(EvalError, match=words):
            EvalSettings(**arguments)
    with pytest.raises(EvalError, match="vocabulary of 1153"):
        evaluate(constructed, EvalSettings(("recall",), (64,)), tmp_path)


# As the model is served


def test_the_frame_of_a_message(constructed: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_dir(EMBEDDED_DIR)
    frame = chat_frame(EMBEDDED_DIR, tokenizer)
    assert frame is not None
    template = ChatTemplate.from_checkpoint(EMBEDDED_DIR)
    served = ChatFormat(tokenizer, template).prompt([ChatMessage("user", "Hello [e~[ you.")], thinking="disabled")
    assert [*frame.before, *tokenizer.encode_plain("Hello [e~[ you."), *frame.after] == list(served.tokens)
    assert chat_frame(constructed, Tokenizer.from_dir(constructed)) is None, "its template adds nothing"
    assert chat_frame(tmp_path, tokenizer) is None
    for template, times in (("{{ messages[0].role }}", 0), ("{{ messages[0].content * 2 }}", 2)):
        (tmp_path / "chat_template.jinja").write_text(template)
        with pytest.raises(EvalError, match=f"{times} times instead of once"):
            chat_frame(tmp_path, tokenizer)


@pytest.mark.parametrize("task", tasks.TEXT_TASKS)
def test_questions_in_a_chat(task: str) -> None:
    tokenizer = Tokenizer.from_dir(EMBEDDED_DIR)
    frame = chat_frame(EMBEDDED_DIR, tokenizer)
    assert frame is not None
    world = tasks.TextWorld(Haystack(tokenizer, [Document.of_text("story.txt", STORY)]), bos=1, chat=frame)
    sample = tasks.TEXT_TASKS[task](world, random.Random(task), 2001, 0.5)
    assert tuple(sample.context[: len(frame.before)]) == frame.before
    assert len(sample.context) + max(len(q.tokens) + q.max_tokens for q in sample.questions) in range(1991, 2002)
    for question in sample.questions:
        assert tuple(question.tokens[-len(frame.after) :]) == frame.after
        assert tokenizer.decode(question.tokens[: -len(frame.after)]).startswith("\n\n")
        answer = tokenizer.decode(question.answers[0])
        assert question.score((), f"It says this: {answer}") == 1
        assert question.score((), "nothing like it") == 0


def test_generated_sentences_say_nothing_of_what_is_asked() -> None:
    tokenizer = Tokenizer.from_dir(EMBEDDED_DIR)
    sample = tasks.single(tasks.TextWorld(Haystack(tokenizer)), random.Random(0), 2000, 0.5)
    thing = tokenizer.decode(sample.questions[0].tokens).split()[-3:-1]
    ((first, end),) = sample.questions[0].evidence
    around = tokenizer.decode([*sample.context[:first], *sample.context[end:]])
    assert len(thing) == 2
    assert all(word in tokenizer.decode(sample.context[first:end]) and word not in around for word in thing)


def test_the_embedded_model_finds_needles_as_it_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Several times the 256 tokens that it attends to."""
    arguments = ["eval", "embedded", "--tasks", "single", "--trials", "5", "--lengths"]
    assert main([*arguments, "1K,3K", "--out", str(tmp_path / "chat")]) == 0
    printed = capsys.readouterr().out
    assert "Asked through the chat template." in printed
    parts = json.loads((tmp_path / "chat" / FILE).read_text())["parts"]
    assert [p["accuracy"]["value"] for p in parts] == [1, 1]
    assert [p["evidence_read"] for p in parts] == [1, 1]
    assert main([*arguments, "512", "--no-chat-template", "--out", str(tmp_path / "chat")]) == 1
    assert "other settings (chat_template)" in capsys.readouterr().err
    assert main([*arguments, "512", "--no-chat-template", "--out", str(tmp_path / "plain")]) == 0
    assert "Asked to continue a sentence, without a chat template." in capsys.readouterr().out


@pytest.mark.parametrize(
    "code", re.findall(r"```python\n(.*?)```", (DOCS / "evals.md").read_text(), re.DOTALL), ids=lambda code: "example"
)
def test_the_documented_lines_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert all(p["accuracy"]["value"] == 1 for p in names["results"]["parts"])
    assert (tmp_path / "results" / FILE).exists()


def test_command(constructed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = tmp_path / "story.txt"
    story.write_text(STORY)
    out = tmp_path / "out"
    arguments = ["eval", str(constructed), "--lengths", "512,1K", "--trials", "2", "--tasks", "single,qa"]
    arguments += ["--attention", "configured", "dense", "--text", str(story), "--loss", "512", "--loss-documents", "2"]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert (out / "results.md").read_text() in printed
    assert "| task | 512 | 1K |" in printed
    assert "## Loss by position, attention: dense" in printed
    for name in ("accuracy.png", "loss.png"):
        assert image.imread(out / name).std() > 0.02  # something is drawn
    results = json.loads((out / FILE).read_text())
    # Below k * B tokens both attend to everything.
    losses = [[b["value"] for b in p["loss"]] for p in results["parts"] if "loss" in p]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert statistics.fmean(losses[0]) > 0
    assert main(["eval", str(constructed), "--attention", "sprase", "--lengths", "512", "--out", str(out)]) == 1
    assert "'sprase'; accepted: configured, dense" in capsys.readouterr().err
