"""Text to tokens: byte-level tokenizers by table, all others by the library, and files that are no tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from longsight.model.constructed import SPECIAL_TOKENS, write_constructed
from longsight.model.errors import CheckpointError
from longsight.model.tokenizer import TextError, Tokenizer


@pytest.fixture(scope="module")
def bytes_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_constructed(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def merging_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with merges, which puts a start token in front."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the code for the lantern is the code"] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    directory = tmp_path_factory.mktemp("merging")
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def test_a_token_is_a_byte(bytes_dir: Path) -> None:
    tokenizer = Tokenizer.from_dir(bytes_dir)
    plain = "naïve €5 \x00\n🙂"
    assert list(tokenizer.encode(plain)) == list(plain.encode())
    assert tokenizer.decode(tokenizer.encode(plain)) == plain
    assert tokenizer.decode([0xE2, 0x82]) == "\ufffd"
    assert list(tokenizer.encode("")) == []
    assert tokenizer.vocab_size == 272


def test_special_tokens_have_their_ids(bytes_dir: Path) -> None:
    tokenizer = Tokenizer.from_dir(bytes_dir)
    assert list(tokenizer.encode("a[e~[é]~!b[")) == [97, 257, 0xC3, 0xA9, 256]
    assert tokenizer.decode([97, 257, 98]) == "ab"


@given(st.lists(st.one_of(st.sampled_from([*SPECIAL_TOKENS, *"]~!b[<>"]), st.text(max_size=5)), max_size=12))
def test_the_table_agrees_with_the_library(bytes_dir: Path, parts: list[str]) -> None:
    text = "".join(parts)
    theirs = tokenizers.Tokenizer.from_file(str(bytes_dir / "tokenizer.json")).encode(text).ids
    assert list(Tokenizer.from_dir(bytes_dir).encode(text)) == theirs


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(normalizer={"type": "Lowercase"}),
        lambda d: d["pre_tokenizer"].update(add_prefix_space=True),
        lambda d: d["added_tokens"][0].update(lstrip=True),
        lambda d: d.update(truncation={"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}),
        lambda d: d["model"].update(vocab={**d["model"]["vocab"], "ab": 300}, merges=[["a", "b"]]),
    ],
    ids=["normalizer", "prefix space", "stripping", "truncation", "merge"],
)
def test_whatever_touches_the_text_is_left_to_the_library(
    change: Callable[[dict[str, Any]], None], bytes_dir: Path, tmp_path: Path
) -> None:
    data = json.loads((bytes_dir / "tokenizer.json").read_text())
    change(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    text = "AB ab  ]~!b[ cd"
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
    assert list(Tokenizer.from_dir(tmp_path).encode(text)) == theirs
    # The change matters: the plain table would have given something else.
    assert theirs != list(Tokenizer.from_dir(bytes_dir).encode(text))


def test_merges_and_start_tokens(merging_dir: Path) -> None:
    tokenizer = Tokenizer.from_dir(merging_dir)
    ids = tokenizer.encode("the code 🙂")
    assert ids[0] == 0
    assert len(ids) < 10
    assert list(tokenizer.encode("the code 🙂", add_special_tokens=False)) == list(ids[1:])
    assert tokenizer.decode(ids) == "the code 🙂"


def test_half_a_surrogate_pair_is_refused(bytes_dir: Path, merging_dir: Path) -> None:
    for directory in (bytes_dir, merging_dir):
        with pytest.raises(TextError, match="character 2 "):
            Tokenizer.from_dir(directory).encode("ab\ud800c")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json does not exist"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 3}', b"\xff\xfe", b'{"model": {"type": "None"}}'])
def test_a_file_that_is_no_tokenizer(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a readable tokenizer"):
        Tokenizer.from_dir(tmp_path)


def test_a_million_tokens_take_little_memory(bytes_dir: Path) -> None:
    """In a process of its own: peak memory never falls. One special token, so that the text must be split."""
    code = (
        "import resource, sys\n"
        "from longsight.model.tokenizer import Tokenizer\n"
        "tokenizer = Tokenizer.from_dir(sys.argv[1])\n"
        "text = 'def f(x):\\n' * 50000 + '[e~[' + 'return x ' * 65000\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "ids = tokenizer.encode(text)\n"
        "print(len(ids), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(bytes_dir)], check=True, capture_output=True, text=True, timeout=120
    )
    count, kib = map(int, out.stdout.split())
    assert count == 1_085_001
    assert kib < 32 * 1024
