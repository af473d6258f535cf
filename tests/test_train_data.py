"""Training data: nothing lost in packing, rows from their number alone, hostile token files refused."""

from __future__ import annotations

import itertools
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longsight.cli.main import main
from longsight.model import ConfigError
from longsight.model.tokenizer import FILE, Tokenizer, byte_characters
from longsight.train.batch import IGNORED, TrainBatch
from longsight.train.config_toml import from_dict
from longsight.train.data import Data, Mix, StageData, TaskSource, batches
from longsight.train.draws import generator
from longsight.train.errors import DataError
from longsight.train.packing import Sequences, pack
from longsight.train.positions import skipped
from longsight.train.recall import Needles, Recall, Vocabulary
from longsight.train.tasks import Context, build
from longsight.train.texts import Texts
from longsight.train.tokenizer import BOS, EOS, cut, train
from longsight.train.tokens import DOCUMENTS, HEADER, TOKENS, TokenFile, TokenWriter, write_texts
from test_train_config import MODEL

PROSE = [
    "The index picks blocks; attention reads only those. It's 2026, and 1048576 tokens are a million.",
    "Ein Satz mit Umlauten: Öl, Übermut, ß. Naïve café — 你好，世界 🙂",
    "def f(x):\n\treturn x  # two  blanks,\n\n\nthree lines\n",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / FILE
    train(PROSE * 3, 320, (BOS, EOS, "<think>")).save(str(path))
    return Tokenizer.from_file(path)


def write(path: Path, documents: list[list[int]], vocab_size: int = 1000) -> TokenFile:
    with TokenWriter(path) as writer:
        writer.begin(vocab_size, "of nobody")
        for document in documents:
            writer.add(document)
    return TokenFile(path)


# Tokenizers


@given(st.text())
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_plain(text)
    assert tokenizer.decode(ids) == text
    assert not any(i < 3 for i in ids)  # the special tokens have the first ids


def test_every_byte_has_a_token(tokenizer: Tokenizer) -> None:
    characters = byte_characters()
    ids = [tokenizer._tokenizer.token_to_id(characters[byte]) for byte in range(256)]
    assert None not in ids
    assert len(set(ids)) == 256
    assert tokenizer.decode([ids[byte] for byte in "Ö🙂".encode()]) == "Ö🙂"


def test_special_tokens_are_tokens_only_where_meant(tokenizer: Tokenizer) -> None:
    assert tokenizer.added_tokens == {BOS: 0, EOS: 1, "<think>": 2}
    text = f"{BOS}a<think>"
    assert list(tokenizer.encode(text))[::2] == [0, 2]
    assert tokenizer.decode(tokenizer.encode_plain(text)) == text
    assert tokenizer.encode_plain_batch([text, "", "b"]) == [tokenizer.encode_plain(t) for t in (text, "", "b")]


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode_plain("1048576")) == 7


@settings(deadline=None)
@given(st.text(st.sampled_from("ab ,'1ö\n\t"), max_size=80), st.integers(1, 20))
def test_a_text_may_be_cut_before_it_is_tokenized(tokenizer: Tokenizer, text: str, size: int) -> None:
    pieces = list(cut(text, size))
    assert "".join(pieces) == text
    assert all(len(piece) <= 2 * size for piece in pieces)
    if all(b[0] == " " and not b[1:2].isspace() and not a[-1].isspace() for a, b in itertools.pairwise(pieces)):
        ids = [i for piece in pieces for i in tokenizer.encode_plain(piece)]
        assert ids == list(tokenizer.encode_plain(text))


@pytest.mark.parametrize(
    ("vocab_size", "special", "message"),
    [(257, (BOS, EOS), "vocab_size is 257.*need 258"), (300, ("x", "x"), "different"), (300, ("",), "different")],
)
def test_impossible_vocabularies(vocab_size: int, special: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(PROSE, vocab_size, special)


# Token files


@given(st.lists(st.lists(st.integers(0, 69_999), max_size=9), max_size=6), st.sampled_from([70_000, 1 << 16]))
@settings(deadline=None, max_examples=30)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], vocab_size: int
) -> None:
    documents = [[i % vocab_size for i in document] for document in documents]
    file = write(tmp_path_factory.mktemp("tokens") / "x", documents, vocab_size)
    kept = [document for document in documents if document]
    assert [file.read(i, 0, len(d)).tolist() for i, d in enumerate(kept)] == kept
    assert file.lengths().tolist() == [len(document) for document in kept]
    assert file.header.dtype == ("uint16" if vocab_size == 1 << 16 else "uint32")


def test_nothing_is_left_of_a_failed_writing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ids 3 to 1000; the vocabulary has 1000"):
        write(tmp_path / "x", [[1], [3, 1000]])
    assert not list(tmp_path.iterdir())
    write(tmp_path / "x", [[1]])
    with pytest.raises(DataError, match="exists already"):
        write(tmp_path / "x", [[2]])
    assert TokenFile(tmp_path / "x").read(0, 0, 1).tolist() == [1]


def change(**fields: Any) -> Any:
    def apply(path: Path) -> None:
        header = json.loads((path / HEADER).read_text())
        (path / HEADER).write_text(json.dumps({**header, **fields}))

    return apply


def put(name: str, content: bytes) -> Any:
    return lambda path: (path / name).write_bytes(content)


def offsets(*values: int) -> Any:
    return put(DOCUMENTS, np.array(values, "<u8").tobytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / HEADER).unlink(), r"cannot read .*header\.json"),
        (lambda path: (path / TOKENS).unlink(), r"cannot read .*tokens\.bin"),
        (put(HEADER, b"{"), "not valid JSON"),
        (put(HEADER, b"\xff"), "not valid JSON"),
        (put(HEADER, b"[" * 100_000), "not valid JSON"),
        (put(HEADER, b"[1]"), "no header of a token file"),
        (put(HEADER, b'{"format": "safetensors"}'), "no header of a token file"),
        (change(version=2), "version is 2; this program reads version 1"),
        (change(dtype="float64"), "dtype is 'float64'; expected one of uint16, uint32"),
        (change(dtype=["uint16"]), "dtype is"),
        (change(dtype="uint32"), "tokens.bin has 10 bytes; .* would be 20"),
        (change(tokens=4), "tokens.bin has 10 bytes; .* would be 8"),
        (change(tokens=2**53), "tokens.bin has 10 bytes"),
        (change(tokens=-1), "tokens is -1"),
        (change(tokens=True), "tokens is True"),
        (change(documents=1), "documents.bin has 24 bytes; .* would be 16"),
        (change(vocab_size=0), "vocab_size is 0"),
        (change(tokenizer=None), "tokenizer is None"),
        (put(TOKENS, b"\0" * 9), "tokens.bin has 9 bytes"),
        (put(TOKENS, b""), "tokens.bin has 0 bytes"),
        (offsets(0, 2, 6), "offsets must rise from 0 to 5"),
        (offsets(1, 2, 5), "offsets must rise from 0 to 5"),
        (offsets(0, 2**63, 5), "offsets must rise from 0 to 5"),
        (offsets(0, 2), "documents.bin has 16 bytes"),
    ],
)
def test_damaged_token_files(tmp_path: Path, damage: Any, message: str) -> None:
    write(tmp_path / "x", [[1, 2], [3, 4, 5]])
    damage(tmp_path / "x")
    with pytest.raises(DataError, match=message):
        TokenFile(tmp_path / "x")


def test_an_id_beyond_the_vocabulary_never_reaches_the_model(tmp_path: Path) -> None:
    write(tmp_path / "x", [[1, 2], [3, 999]])
    change(vocab_size=999)(tmp_path / "x")
    file = TokenFile(tmp_path / "x")
    assert file.read(0, 0, 2).tolist() == [1, 2]
    with pytest.raises(DataError, match="document 1 holds id 999; the vocabulary has 999"):
        file.read(1, 0, 2)
    with pytest.raises(IndexError, match="tokens 0 to 3 of document 0, which has 2"):
        file.read(0, 0, 3)


# Texts and the command


def test_documents_of_files_and_lines(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"text": "two", "n": 1}\n\n{"text": ""}\n{"text": "three"}')
    (tmp_path / "c.md").write_bytes(b"\xff")
    (tmp_path / "d.png").write_text("no text file")
    seen: list[tuple[int, int]] = []
    texts = Texts.find([tmp_path], progress=lambda done, total: seen.append((done, total)))
    assert list(texts) == list(texts) == ["two", "three", "one"]
    assert texts.skipped == [tmp_path / "c.md"]
    assert seen[-1] == (seen[-1][1],) * 2
    with pytest.raises(DataError, match=r"c\.md is no UTF-8 text: byte 0 is 0xff"):
        list(Texts.find([tmp_path / "c.md"]))
    with pytest.raises(DataError, match="nowhere does not exist"):
        Texts.find([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"no \.rst files in"):
        Texts.find([tmp_path], suffixes=[".rst"])


@pytest.mark.parametrize("line", [b"{", b'"text"', b'{"text": 1}', b'{"body": "x"}', b"\xff", b"[" * 100_000])
def test_bad_json_lines_are_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "good"}\n' + line)
    with pytest.raises(DataError, match=r"x\.jsonl, line 2"):
        list(Texts.find([tmp_path / "x.jsonl"]))


def test_half_a_surrogate_pair_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with TokenWriter(tmp_path / "x") as writer:
        writer.begin(tokenizer.vocab_size, "")
        with pytest.raises(DataError, match="is no Unicode text"):
            write_texts(["a\ud800"], tokenizer, writer)


def test_tokenize_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").mkdir()
    for number, text in enumerate(PROSE):
        (tmp_path / f"text/{number}.txt").write_text(text)
    source, out, again = tmp_path / "text", tmp_path / "out", tmp_path / "again"
    assert main(["tokenize", str(source), "--train-vocab", "300", "--special", "<x>", "--out", str(out)]) == 0
    assert "documents 3" in capsys.readouterr().out
    file, tokenizer = TokenFile(out), Tokenizer.from_dir(out)
    assert tokenizer.added_tokens == {BOS: 0, EOS: 1, "<x>": 2}
    for document, text in enumerate(PROSE):
        ids = file.read(document, 0, int(file.lengths()[document])).tolist()
        assert (ids[0], ids[-1]) == (0, 1)
        assert tokenizer.decode(ids) == text
    assert main(["tokenize", str(source), "--tokenizer", str(out), "--out", str(again)]) == 0
    for name in (TOKENS, DOCUMENTS, HEADER, FILE):
        assert (out / name).read_bytes() == (again / name).read_bytes()
    capsys.readouterr()
    assert main(["tokenize", str(source), "--tokenizer", str(out), "--out", str(again)]) == 1
    assert "exists already" in capsys.readouterr().err


# Packing


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 16))
def test_packing_loses_nothing_and_crosses_nothing(lengths: list[int], length: int) -> None:
    packing = pack(np.arange(len(lengths)), np.array(lengths, np.int64), length)
    seen = set()
    for row in range(len(packing)):
        pieces = range(int(packing.rows[row]), int(packing.rows[row + 1]))
        sizes = [int(packing.sizes[piece]) for piece in pieces]
        assert 0 < sum(sizes) <= length
        assert min(sizes) > 0
        for piece in pieces:
            document, start, size = (int(x[piece]) for x in (packing.documents, packing.starts, packing.sizes))
            places = {(document, i) for i in range(start, start + size)}
            assert not places & seen
            seen |= places
            assert size == min(length, lengths[document] - start)  # nothing is cut that need not be
    assert seen == {(document, i) for document, n in enumerate(lengths) for i in range(n)}
    # Best fit leaves at most one row half empty.
    filled = [int(packing.sizes[packing.rows[r] : packing.rows[r + 1]].sum()) for r in range(len(packing))]
    assert sum(2 * tokens <= length for tokens in filled) <= 1


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(2, 9))
def test_targets_are_the_next_tokens_of_the_same_document(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int
) -> None:
    starts = np.cumsum([0, *lengths])
    documents = [list(range(starts[i], starts[i] + n)) for i, n in enumerate(lengths)]  # every token is unique
    file = write(tmp_path_factory.mktemp("tokens") / "x", documents)
    packing = pack(np.arange(len(lengths)), file.lengths(), length)
    target_of: dict[int, int] = {}
    for row in range(len(packing)):
        read = packing.read(file, row)
        assert sum(read.lengths) == len(read.tokens) == len(read.targets)
        target_of |= dict(zip(read.tokens.tolist(), read.targets.tolist(), strict=True))
    # Even where a document is cut, its next token is the target: only its end predicts nothing.
    expected = {token: token + 1 for document in documents for token in document}
    assert target_of == expected | {document[-1]: IGNORED for document in documents}


# Position skipping


@given(st.integers(0, 100), st.integers(0, 2**20), st.integers(0, 2**31))
def test_gaps_fall_between_tokens(length: int, reach: int, seed: int) -> None:
    positions = skipped(generator(seed, "test"), length, reach)
    assert positions.shape == (length,)
    steps = np.diff(positions)
    assert (steps >= 1).all()
    if length:
        assert positions[0] == 0
    if length > 1 and reach > length:
        assert length <= positions[-1] < reach
        assert 1 <= (steps > 1).sum() <= 4
    else:
        assert not (steps > 1).any()


def test_gaps_are_log_uniform() -> None:
    length, reach = 64, 2**20
    totals = [int(skipped(generator(0, "test", i), length, reach)[-1]) - length + 1 for i in range(4000)]
    shares, _ = np.histogram(np.log2(totals), bins=10, range=(0, 20))
    assert (shares > 330).all()  # 400 each
    assert (shares < 470).all()
    assert {int(skipped(generator(0, "test", i), 2, 4)[-1]) for i in range(50)} == {2, 3}  # both ends are reached


# Recall


def check_answers(tokens: np.ndarray[Any, Any], targets: np.ndarray[Any, Any], v: Vocabulary) -> tuple[int, int]:
    """Every repeated key, and nothing else, has its value as target. (answers, pairs)"""
    known: dict[int, int] = {}
    answers = pairs = 0
    for place, token in enumerate(tokens.tolist()):
        if token < v.first_key:
            assert targets[place] == IGNORED
            continue
        value = int(tokens[place + 1])
        assert v.first_value <= value < v.first_key
        assert known.setdefault(token, value) == value
        pairs += 1
        if targets[place] != IGNORED:
            assert targets[place] == value
            assert token in tokens[:place]
            answers += 1
        else:
            assert token not in tokens[:place]
    return answers, pairs


def test_recall_is_what_the_recipe_says() -> None:
    v = Vocabulary()
    assert v.size == 1153
    task = build("recall", {"keys": [2, 12], "density": [0.3, 1.0]}, Context(1153))
    assert isinstance(task, Recall)
    shifts, key_counts, answers = set(), set(), 0
    for number in range(300):
        row = task.sample(generator(0, "test", number), 64)
        assert row.lengths == (64,)
        assert row.tokens[0] == 0
        assert (row.tokens[1:] > 0).all()
        found, pairs = check_answers(row.tokens, row.targets, v)
        assert round(0.3 * 31) - 1 <= pairs <= 31
        keys = np.flatnonzero(row.tokens >= v.first_key)
        shifts |= set(((keys - 1) % 2).tolist())
        assert len(set((keys % 2).tolist())) == 1  # one shift a row
        key_counts.add(len(set(row.tokens[keys].tolist())))
        answers += found
    assert shifts == {0, 1}
    assert key_counts == set(range(2, 13))
    assert 12 < answers / 300 < 17


def test_log_density_favours_sparse_rows() -> None:
    def pairs(scale: str) -> list[int]:
        options = {"keys": [8, 48], "density": [0.15, 1.0], "density_scale": scale}
        task = build("recall", options, Context(1153))
        rows = [task.sample(generator(0, "test", i), 256) for i in range(200)]
        return [int((row.tokens >= Vocabulary().first_key).sum()) for row in rows]

    assert abs(np.median(pairs("log")) / 127 - 0.15**0.5) < 0.06
    assert abs(np.median(pairs("even")) / 127 - 0.575) < 0.08


@pytest.mark.parametrize("length", [2, 3, 16, 64, 256, 1024])
def test_needles_are_there_once_and_asked_at_the_end(length: int) -> None:
    v = Vocabulary()
    task = build("recall-needles", {"queries": 8}, Context(1153))
    assert isinstance(task, Needles)
    row = task.sample(generator(0, "test", 1), length)
    answers, pairs = check_answers(row.tokens, row.targets, v)
    cells = (length - 2) // 2 if length < 16 else length // 2 - 1
    if length >= 256:
        assert (answers, pairs) == (8, length // 32 + 8)
        assert np.flatnonzero(row.targets != IGNORED).min() >= length - 2 * 8 - 1
    else:
        assert answers <= min(8, cells // 2 + 1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("recal", {}, "task is 'recal'; expected one of .*recall, recall-needles"),
        ("recall", {"key": [2, 3]}, "key = .* is not known; accepted: density"),
        ("recall", {"keys": [3, 2]}, r"keys is \[3, 2\]; expected two rising whole numbers from 1 to 1024"),
        ("recall", {"keys": [1, 1025]}, r"keys is \[1, 1025\]"),
        ("recall", {"density": [0, 1]}, "density is"),
        ("recall", {"vocab_keys": 2000}, "needs 2129 tokens; the model's vocab_size is 1153"),
    ],
)
def test_task_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, options, Context(1153))


# Batches


def config_text(path: Path, stages: str) -> str:
    return f"""
[model]
{MODEL}
[run]
out = "x"
[[data]]
name = "text"
tokens = "{path}"
part = [0.0, 0.8]
[[data]]
name = "held-out"
tokens = "{path}"
part = [0.8, 1.0]
[[data]]
name = "recall"
task = "recall"
weight = 0.5
{stages}
[validation]
every = 10
rows = 3
length = 24
sources = ["held-out", "recall"]
"""


def stage_text(name: str, steps: int, *, length: int = 24, batch: int = 6, micro: int = 6, more: str = "") -> str:
    return f"""
[[stage]]
name = "{name}"
steps = {steps}
length = {length}
batch = {batch}
micro = {micro}
attention = "dense"
skip = 4096
sources = ["text", "recall"]
{more}
"""


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 1000, n).tolist() for n in rng.integers(1, 60, 100)]
    path = tmp_path_factory.mktemp("data") / "tokens"
    write(path, documents)
    return path


def open_data(path: Path, stages: str) -> Data:
    return Data(from_dict(tomllib.loads(config_text(path, stages)), Path()))


Row = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def documents_of(batch: TrainBatch) -> list[Row]:
    """(tokens, targets, RoPE positions) of each document."""
    assert batch.tokens.dtype == batch.targets.dtype == batch.rope_positions.dtype == torch.int64
    assert len(batch.tokens) == len(batch.targets) == len(batch.rope_positions) == batch.documents.rows
    columns = (batch.tokens.tolist(), batch.targets.tolist(), batch.rope_positions.tolist())
    return [tuple(tuple(column[a:b]) for column in columns) for a, b in batch.documents.bounds]  # type: ignore[misc]


def rows_of(stage: StageData, steps: range, rank: int = 0, world: int = 1, seed: int = 0) -> list[Row]:
    return [row for step in steps for batch in batches(stage, seed, step, rank, world) for row in documents_of(batch)]


def test_a_step_is_a_pure_function(token_file: Path) -> None:
    text = stage_text("one", 40)
    stage, anew = open_data(token_file, text).stages[0], open_data(token_file, text).stages[0]
    forwards = [rows_of(stage, range(step, step + 1)) for step in range(20)]
    backwards = [rows_of(anew, range(step, step + 1)) for step in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert rows_of(stage, range(3), seed=1) != rows_of(stage, range(3))
    assert len({str(rows) for rows in forwards}) == 20


@pytest.mark.parametrize("micro", [1, 2, 4, 7])
@pytest.mark.parametrize("batch", [3, 6, 7])
def test_all_processes_together_read_what_one_reads(token_file: Path, batch: int, micro: int) -> None:
    stage = open_data(token_file, stage_text("one", 40, batch=batch, micro=min(micro, batch))).stages[0]
    for step in range(5):
        alone = rows_of(stage, range(step, step + 1))
        for world in (1, 2, 3):
            ranks = [batches(stage, 0, step, rank, world) for rank in range(world)]
            assert [row for rank in ranks for part in rank for row in documents_of(part)] == alone
            assert len({len(parts) for parts in ranks}) == 1
            assert all(part.documents.rows for parts in ranks for part in parts)
            # 24 tokens a row at most; one row more only where a process would otherwise have had none.
            most = max(part.documents.rows for parts in ranks for part in parts)
            assert most <= 24 * (min(micro, batch) + (micro == 1 and batch % world > 0))


def test_more_processes_than_rows(token_file: Path) -> None:
    stage = open_data(token_file, stage_text("one", 40, batch=2, micro=1)).stages[0]
    with pytest.raises(ConfigError, match="batch is 2; 3 processes need at least 3 rows"):
        batches(stage, 0, 0, 0, 3)


def test_an_epoch_is_every_row_once(token_file: Path) -> None:
    text = stage_text("one", 200, batch=4, micro=4).replace('["text", "recall"]', '["text"]')
    data = open_data(token_file, text)
    source: Any = data.sources["text"]
    count = len(source.packing(24))
    rows = [data.stages[0].sequences(0, row)[0].tokens.tolist() for row in range(2 * count)]
    assert (
        sorted(rows[:count])
        == sorted(rows[count:])
        == sorted(source.packing(24).read(source.tokens, r).tokens.tolist() for r in range(count))
    )
    assert rows[:count] != rows[count:]
    assert sum(map(len, rows[:count])) == source.lengths.sum()


def test_parts_never_meet(token_file: Path) -> None:
    sources: Any = open_data(token_file, stage_text("one", 4)).sources
    kept, held_out = set(sources["text"].documents.tolist()), set(sources["held-out"].documents.tolist())
    assert (len(kept), len(held_out)) == (80, 20)
    assert not kept & held_out
    assert held_out != set(range(80, 100))


def test_where_stages_end_changes_no_row(token_file: Path) -> None:
    whole = open_data(token_file, stage_text("one", 10)).stages[0]
    parts = open_data(token_file, "".join(stage_text(f"s{n}", n) for n in (3, 1, 6))).stages
    rows = [row for stage, steps in zip(parts, (3, 1, 6), strict=True) for row in rows_of(stage, range(steps))]
    assert rows == rows_of(whole, range(10))


def test_another_mix_goes_on_where_the_sources_stood(token_file: Path) -> None:
    """Three mixes, one epoch: no source gives a row twice."""
    other = stage_text("two", 3).replace('["text", "recall"]', "{ text = 1, recall = 3 }")
    data = open_data(token_file, stage_text("one", 4) + other + stage_text("three", 3))
    rows = [
        stage.sequences(0, row)[0].tokens.tolist()
        for stage, steps in zip(data.stages, (4, 3, 3), strict=True)
        for row in range(steps * stage.batch)
    ]
    source: Any = data.sources["text"]
    assert len(rows) < len(source.packing(24))
    assert len({tuple(row) for row in rows}) == len(rows) == 60


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=5), st.integers(0, 2**40))
def test_a_mix_holds_its_shares(weights: list[float], start: int) -> None:
    shares = {str(i): weight / sum(weights) for i, weight in enumerate(weights)}
    mix = Mix.of(shares)
    before, after = mix.counts(start), mix.counts(start + 100)
    assert sum(after.values()) == start + 100
    picked = [mix.pick(row) for row in range(start, start + 100)]
    for name, share in shares.items():
        assert [n for chosen, n in picked if chosen == name] == list(range(before[name], after[name]))
        assert abs(after[name] - before[name] - 100 * share) <= len(shares)


def test_a_row_of_several_samples() -> None:
    samples: list[int] = []

    class Counting:
        def words(self) -> tuple[str, ...]:
            return ()

        def sample(self, rng: np.random.Generator, length: int) -> Sequences:
            samples.append(length)
            tokens = rng.integers(0, 1 << 30, length - 1)
            return Sequences(tokens, tokens, (len(tokens),))

    row = TaskSource("a", Counting(), each=30).row(0, 0, 100)
    assert row.lengths == (29, 29, 29)
    assert len(set(row.tokens.tolist())) == len(row.tokens) == len(row.targets) == 87
    assert TaskSource("a", Counting(), each=30).row(0, 0, 20).lengths == (19,)
    assert TaskSource("a", Counting()).row(0, 0, 20).lengths == (19,)
    assert samples == [30, 30, 30, 20, 20]


def test_validation_rows_are_none_of_training(token_file: Path) -> None:
    data = open_data(token_file, stage_text("one", 10))
    assert data.validation is not None
    rows = rows_of(data.validation, range(1))
    assert rows == rows_of(data.validation, range(1))
    trained = {tokens for tokens, _, _ in rows_of(data.stages[0], range(10))}
    assert not trained & {tokens for tokens, _, _ in rows if len(tokens) == 24}
    assert all(list(positions) == list(range(len(tokens))) for tokens, _, positions in rows)


def test_data_that_does_not_fit_the_model(token_file: Path, tmp_path: Path) -> None:
    text = config_text(token_file, stage_text("one", 4))
    small = text.replace("vocab_size = 1153", "vocab_size = 999").replace(
        'task = "recall"', 'task = "recall"\nvocab_keys = 9'
    )
    with pytest.raises(ConfigError, match=r"data 'text'.*vocabulary of 1000; the model's vocab_size is 999"):
        Data(from_dict(tomllib.loads(small), Path()))
    (tmp_path / FILE).write_text(train(PROSE, 300).to_str())
    foreign = text + f'[tokenizer]\npath = "{tmp_path / FILE}"\n'
    with pytest.raises(DataError, match="written with another tokenizer"):
        Data(from_dict(tomllib.loads(foreign), Path()))
    with pytest.raises(DataError, match="has no tokens in part"):
        Data(from_dict(tomllib.loads(text.replace("[0.8, 1.0]", "[0.8, 0.8]")), Path()))


def test_a_task_names_its_tokens(token_file: Path, tmp_path: Path) -> None:
    text = config_text(token_file, stage_text("one", 4))
    path = tmp_path / FILE
    assert not Data(from_dict(tomllib.loads(text), Path())).write_tokenizer(path)
    assert Data(from_dict(tomllib.loads(text + '[tokenizer]\nsource = "recall"\n'), Path())).write_tokenizer(path)
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.vocab_size == 1153
    assert list(tokenizer.encode("f0 v63 k1023 what")) == [0, 1, 128, 1152, 1]  # an unknown word is a filler
    assert tokenizer.decode([0, 129, 65]) == " k0 v0"


def test_what_the_end_of_a_run_needs_is_looked_for_at_its_start(token_file: Path, tmp_path: Path) -> None:
    text = config_text(token_file, stage_text("one", 4))
    with pytest.raises(ConfigError, match=r"tokenizer\.source is 'text'; expected a source whose task names"):
        Data(from_dict(tomllib.loads(text + '[tokenizer]\nsource = "text"\n'), Path()))
    with pytest.raises(DataError, match=r"cannot read .*none\.jinja"):
        Data(from_dict(tomllib.loads(text + '[tokenizer]\nchat_template = "none.jinja"\n'), tmp_path))


def test_missing_data_are_named_with_what_makes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file of examples/text.toml as it is in a fresh checkout, without its data."""
    (tmp_path / "examples").mkdir()
    file = tmp_path / "examples" / "text.toml"
    text = (Path(__file__).parents[1] / "examples" / "text.toml").read_text()
    missing = tmp_path / "recipes" / "embedded" / "work" / "tokens"
    file.write_text(text)
    assert main(["train", str(file), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == (
        f"longsight: error: there is no token file {missing}, which data 'text' reads; make it: "
        "python -m recipes.embedded.corpus && python -m recipes.embedded.tokenizer --plain\n"
    )
    file.write_text("\n".join(line for line in text.splitlines() if not line.startswith("made_by")))
    assert main(["train", str(file), "--out", str(tmp_path / "out")]) == 1
    assert f"make it: longsight tokenize PATH... --train-vocab N --out {missing}" in capsys.readouterr().err
