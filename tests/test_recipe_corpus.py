"""The embedded model's corpus and tokenizer, on small samples; nothing is downloaded."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("selectolax")

from longsight.model import ModelConfig
from longsight.model.built_in import embedded_path
from longsight.model.errors import ConfigError
from longsight.model.markup import DOCUMENT, END_OF_TURN, END_THINK, NAMESPACE, THINK, TURN
from longsight.model.tokenizer import FILE, Tokenizer
from longsight.train.config import TrainConfig
from longsight.train.tokenizer import train
from longsight.train.tokens import TokenFile
from recipes.embedded import code, corpus, extract, licences, packages
from recipes.embedded import tokenizer as recipe
from recipes.embedded.clean import SHORTEST_DOCUMENT, Cleaner, is_prose, plain
from recipes.embedded.sources import SOURCES, Source

PROSE = (
    "The old keeper of the lighthouse wrote in his book that the wind had turned, and that ships were late.",
    "It is said that the harbour was once the largest of the coast, and that a bridge led to the island.",
    "You can walk to the mill in an hour if the road is dry, but in the spring it takes most of a day.",
    "For many years nobody from the town had seen the garden behind the wall, which was as tall as a house.",
    "When the bell rang at noon, the children ran down to the river with bread and cheese in their hands.",
)
GERMAN = "Der alte Mann ging mit seinem Hund durch den Wald und sah dabei viele Tiere, die er nicht kannte."


def test_html_gives_its_sentences_only() -> None:
    page = f"""<html><head><title>no</title><script>var no = 1;</script></head><body>
      <div class="navheader"><p>no</p></div><nav>no</nav>
      <h1>The <em>title</em><a class="headerlink">#</a></h1>
      <p>{PROSE[0].replace(" wrote", chr(10) + " wrote")}</p><pre>no();</pre>
      <ul><li>one &amp; two</li><li>three<p>four</p>five</li></ul>
      <table><tr><td>no</td></tr></table>loose</body></html>"""
    found = extract.from_html(page)
    assert found == ["The title", PROSE[0], "one & two", "three", "four", "five", "loose"]


def test_help_pages() -> None:
    page = """<page xmlns="http://projectmallard.org/1.0/"><info><desc>no</desc></info><title>Sound</title>
      <p>Press the <key>power</key>
      button.</p><code>no</code><list><item><p>one</p></item></list></page>"""
    assert extract.from_mallard(page) == ["Sound", "Press the power button.", "one"]


def test_pod() -> None:
    pod = """=head1 NAME

C<print> writes a B<list I<of> texts>, see L<the manual|perlfunc/print> and
L<perlop/"Quotes">, C<< $a->{b} >>, E<lt>STDINE<gt>.

    no();

=over 4

=item *

A point

=begin html

no

=end html

=cut"""
    assert extract.from_pod(pod) == [
        "NAME",
        "print writes a list of texts, see the manual and Quotes, $a->{b}, <STDIN>.",
        "A point",
    ]


def test_markdown() -> None:
    text = """# A heading
First *line* of
**text** with [a link](http://x.y/z) and snake_case_name.

```
no
```

    no

- one
- `two` &amp; three
"""
    assert extract.from_markdown(text) == [
        *("A heading", "First line of text with a link and snake_case_name.", "one", "two & three")
    ]


def test_games_and_dictionaries() -> None:
    campaign = """[message]
        speaker=Konrad
        message= _ "We must ""go"" <i>now</i>,
and fast."
    [/message]
    [message]
        speaker=narrator
        message= _ "Night fell."
        name= _ "no"
    [/message]"""
    assert extract.from_campaign(campaign) == ['Konrad: We must "go" now, and fast.', "Night fell."]
    missions = "mission no\n\t`You land on a quiet world of ice.`\n\t`Bring it to <planet> as soon as you can.`\n"
    assert extract.from_missions(missions) == ["You land on a quiet world of ice."]
    entry = "amber\n    n 1: a deep yellow {color}\n         [syn: {gold}]\n    2: a hard resin\nnext\n   A thing.\n"
    assert extract.from_dictionary(entry) == ["amber: a deep yellow color", "a hard resin", "next: A thing."]


def test_sword_modules() -> None:
    texts = ["<title>One</title> <w>In</w> the <note>no</note>field.<div/>Two &amp; three.", "Last"]
    blocks = [zlib.compress(text.encode()) for text in texts]
    index = struct.pack("<IIIIII", 0, len(blocks[0]), 9, len(blocks[0]), len(blocks[1]), 9)
    found = extract.sword_blocks(index, b"".join(blocks))
    assert [extract.from_osis(text) for text in found] == [["One", "In the field.", "Two & three."], ["Last"]]


@pytest.mark.parametrize("paragraph", PROSE)
def test_sentences_are_prose(paragraph: str) -> None:
    assert is_prose(paragraph)


@pytest.mark.parametrize(
    "paragraph",
    [
        GERMAN,
        "Too short to be a paragraph.",
        "Copyright (C) 2003 by the people of the project, who gave it to you and to all of the others in that year.",
        'int main(int argc, char **argv) { return printf("%d\\n", argc); } /* it is the end of the program */',
        "Chapter 1, 12; Chapter 2, 45; Chapter 3, 99; Chapter 4, 101; Chapter 5, 133; Chapter 6, 170; Chapter 7, 193",
    ],
)
def test_other_things_are_not(paragraph: str) -> None:
    assert not is_prose(paragraph)


def test_a_document_keeps_headings_of_prose_and_each_paragraph_once() -> None:
    cleaner = Cleaner()
    (document,) = cleaner.documents(["Menu", "Home", *PROSE[:2], GERMAN, "The garden", *PROSE[2:], "The end"])
    assert document == "\n\n".join(["Home", *PROSE[:2], "The garden", *PROSE[2:]])
    assert len(document) >= SHORTEST_DOCUMENT
    assert cleaner.documents([paragraph.upper().lower() for paragraph in PROSE]) == []
    assert Cleaner().documents(PROSE[:1]) == []
    assert plain("“It’s here” — he said .") == '"It\'s here" -- he said.'


def test_licences_of_machine_readable_files() -> None:
    text = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: doc/extra/*
License: public-domain

Files: *
Copyright: 1999 Somebody
License: GPL-2+ or Artistic
 This is free.

Files: debian/*
License: ISC

License: Expat
 Text.
"""
    assert licences.stated(text) == "GPL-2+ or Artistic; public domain"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "terms of the GNU General\n Public License; either version 2, or (at your option) any later version",
            "GPL-2+",
        ),
        ("It is licensed under the terms of the GNU GPL, version 2. See common-licenses/GPL-2", "GPL-2"),
        ("The document is in the public domain.", "public domain"),
        ("the GNU Free Documentation License, Version 1.1 or any later version", "GFDL-1.1+"),
        ("All rights reserved.", ""),
    ],
)
def test_licences_of_other_files(text: str, expected: str) -> None:
    assert licences.stated(text) == expected


def test_the_list_names_each_package_once() -> None:
    names = [source.package for source in SOURCES]
    assert len(set(names)) == len(names)
    assert not Source("x").takes("usr/share/doc/x/changelog.html.gz")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb, which makes the package that is read")
def test_from_packages_to_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    debs = tmp_path / "debs"
    page = "".join(f"<p>{paragraph}</p>" for paragraph in PROSE)
    _package(debs, "tale", "doc", {"doc/tale/a.html": page, "doc/tale/copyright": "in the public domain"})
    monkeypatch.setattr(corpus, "SOURCES", (Source("tale"),))
    arguments = ["--work", str(tmp_path), "--debs", str(debs), "--sources", str(tmp_path / "SOURCES.md")]
    assert corpus.main(arguments) == 0
    first = (tmp_path / "corpus.jsonl").read_bytes()
    assert json.loads(first) == {"source": "tale", "text": "\n\n".join(PROSE)}
    assert "| tale | 1.0 | public domain | 1 |" in (tmp_path / "SOURCES.md").read_text()
    assert corpus.main(arguments) == 0
    assert (tmp_path / "corpus.jsonl").read_bytes() == first


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb, which makes the package that is read")
def test_code_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tokenizer: Tokenizer
) -> None:
    debs, source = tmp_path / "debs", "def old(mill):\n    return mill  # ]~!b[\n"
    files = {
        "lib/a.py": source,
        "lib/long.py": source * 9,
        "lib/no.txt": "no",
        "doc/mill/copyright": "in the public domain",
    }
    _package(debs, "mill", "python", {**files, "doc/mill/copyright": "in the public domain"})
    monkeypatch.setattr(code, "RAW", (Source("mill", r"\.py$", at_most=100),))
    arguments = ["--work", str(tmp_path), "--debs", str(debs), "--sources", str(tmp_path / "CODE.md")]
    assert code.main(arguments) == 1
    assert "python -m recipes.embedded.tokenizer" in capsys.readouterr().err
    (tmp_path / "even").mkdir()
    recipe.learn([*PROSE, "year 1987 and 12345"], vocab_size=2900).save(str(tmp_path / "even" / FILE))
    for _ in range(2):
        assert code.main(arguments) == 0
        tokens = TokenFile(tmp_path / "code")
        assert len(tokens) == 1  # the other file is more than is wanted
        ids = tokens.read(0, 0, int(tokens.lengths()[0])).tolist()
        ends = tokenizer.added_tokens[DOCUMENT], tokenizer.added_tokens[END_OF_TURN]
        assert (ids[0], ids[-1]) == ends
        assert set(ends).isdisjoint(ids[1:-1])
        assert tokenizer.decode(ids[1:-1]) == source
        assert f"| mill | 1.0 | public domain | 1 | {len(source)} |" in (tmp_path / "CODE.md").read_text()


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb, which makes the package that is read")
def test_packages_that_must_not_be_used(tmp_path: Path) -> None:
    deb = _package(tmp_path, "secret", "non-free/doc", {"doc/secret/a.html": ""})
    with pytest.raises(packages.PackageError, match="section non-free/doc"):
        packages.version(deb)
    unclear = _package(tmp_path, "unclear", "doc", {"doc/unclear/copyright": "Ask us."})
    with pytest.raises(packages.PackageError, match="unclear: no licence recognised"):
        corpus.read(Source("unclear"), unclear, tmp_path / "read")


def _package(directory: Path, name: str, section: str, files: dict[str, str]) -> Path:
    tree = directory / name
    for path, text in files.items():
        file = tree / "usr/share" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tree / "DEBIAN").mkdir()
    control = {"Package": name, "Version": "1.0", "Section": section, "Architecture": "all", "Maintainer": "A <a@b.c>"}
    lines = "".join(f"{key}: {value}\n" for key, value in control.items())
    (tree / "DEBIAN/control").write_text(f"{lines}Description: a test\n")
    deb = directory / f"{name}_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, deb], check=True, capture_output=True)
    return deb


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / FILE
    recipe.learn([*PROSE, "year 1987 and 12345"], vocab_size=2900).save(str(path))
    return Tokenizer.from_file(path)


def test_numbers_of_up_to_three_digits_are_one_token(tokenizer: Tokenizer) -> None:
    numbers = [f"{number:0{length}}" for length in (1, 2, 3) for number in range(10**length)]
    ids = tokenizer.encode_plain_batch(numbers)
    assert {len(each) for each in ids} == {1}
    assert len({each[0] for each in ids}) == 1110
    assert {len(each) for each in tokenizer.encode_plain_batch([f" {number}" for number in numbers])} == {1}
    split = [tokenizer.decode([index]) for index in tokenizer.encode_plain("v12345678.5 4417  90")]
    assert split == ["v", "123", "456", "78", ".", "5", " 441", "7", " ", " 90"]


def test_a_word_is_split_alike_with_and_without_a_blank(tokenizer: Tokenizer, tmp_path: Path) -> None:
    recipe.learn(PROSE, vocab_size=1800, plain=True).save(str(tmp_path / FILE))
    plain = Tokenizer.from_file(tmp_path / FILE)
    words = sorted({word for text in PROSE for word in re.findall("[A-Za-z]{4,}", text)})
    uneven = dict.fromkeys(("even", "plain"), 0)
    with_blank = 0
    for word in words:
        for name, one in (("even", tokenizer), ("plain", plain)):
            alone, after = ([one.decode([i]) for i in one.encode_plain(text)] for text in (word, f" {word}"))
            with_blank += name == "even" and after[0] != " "
            uneven[name] += [piece for piece in (after[0].removeprefix(" "), *after[1:]) if piece] != alone
    assert uneven["even"] == 0 < uneven["plain"]
    assert with_blank > len(words) / 2  # most begin with a token that has the blank in it
    call = tokenizer.encode_plain("get_mill(<mill>"), tokenizer.encode_plain("mill")
    assert " ".join(map(str, call[0])).count(" ".join(map(str, call[1]))) == 2


def test_special_tokens_and_markers(tokenizer: Tokenizer) -> None:
    special = (DOCUMENT, TURN, END_OF_TURN, recipe.PAD)
    markers = (NAMESPACE, THINK, END_THINK)
    assert set(tokenizer.added_tokens) == {*special, *markers}
    for token in (*special, *markers):
        ids = tokenizer.encode(token)
        assert list(ids) == [tokenizer.added_tokens[token]]
        assert tokenizer.decode(ids) == ("" if token in special else token)
        assert tokenizer.decode(tokenizer.encode_plain(token)) == token
        assert len(tokenizer.encode_plain(token)) > 1


def test_the_words_of_tool_calls_are_short(tokenizer: Tokenizer) -> None:
    for text in ("<tool_call>", "</tool_call>", '<invoke name="', "</invoke>", "user", "ai", "developer", "tool"):
        assert len(tokenizer.encode_plain(text)) <= 5, text


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode_plain(text)) == text


def test_a_vocabulary_needs_room_for_the_numbers() -> None:
    with pytest.raises(ConfigError, match="1,100 groups of digits need 1358"):
        train(["a"], 1300, group_digits=True)
    with pytest.raises(ConfigError, match="2,210 groups of digits need 2468"):
        train(["a"], 1300, group_digits=True, even=True)


def test_the_corpus_as_token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "corpus.jsonl"
    source.write_text("".join(json.dumps({"source": "x", "text": text}) + "\n" for text in PROSE))
    out = tmp_path / "tokens"
    monkeypatch.setattr(recipe, "REPEATED", 3)
    assert recipe.main(["--corpus", str(source), "--out", str(out)]) == 0
    file, read = TokenFile(out), Tokenizer.from_dir(out)
    assert len(file) == len(PROSE)
    ids = list(file.read(1, 0, int(file.lengths()[1])))
    assert (ids[0], ids[-1]) == (read.added_tokens[DOCUMENT], read.added_tokens[END_OF_TURN])
    assert read.decode(ids) == PROSE[1]
    assert recipe.main(["--corpus", str(source), "--out", str(out)]) == 1


def test_the_training_file_makes_the_model_that_is_shipped() -> None:
    config = TrainConfig.from_file(Path(corpus.__file__).with_name("train.toml"))
    assert config.model.config == ModelConfig.from_file(embedded_path())
    assert {source.tokens for source in config.data if source.tokens} == {corpus.WORK / "even", corpus.WORK / "code"}
    template = config.tokenizer.chat_template
    assert template is not None
    assert template.read_bytes() == (embedded_path() / "chat_template.jinja").read_bytes()
