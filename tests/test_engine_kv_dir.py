"""Pages in a file: prefixes outlive the process, and nothing torn, foreign or edited is ever believed."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from array import array
from pathlib import Path

import pytest
import torch

from longsight.engine import Engine, EngineConfigError, Request, SamplingParams, kv_journal
from longsight.engine.kv_dir import JOURNAL, POOL, KvDirectory
from longsight.engine.kv_journal import Entry
from longsight.engine.prefix_cache import StoredPage
from longsight.model import Model, load_model
from longsight.model.fingerprint import fingerprint
from longsight.ops import PageLayout, supports
from tiny_checkpoint import BLOCK, CONFIG, TOPK, write_tiny_checkpoint

BACKEND = "cpu" if supports("cpu") is None else "reference"
LAYOUTS = [PageLayout(16, 2, 16, 0, torch.float32), PageLayout(16, 2, 16, 32, torch.float32)]
PROMPT = random.Random(5).choices(range(256), k=6 * TOPK * BLOCK + 5)


def directory(path: Path, *, key: bytes = b"model", pages: int = 6) -> KvDirectory:
    return KvDirectory.open(path, fingerprint=key, layouts=LAYOUTS, pages=pages)


def page(number: int, seed: int | None = None) -> StoredPage:
    seed = number if seed is None else seed
    return StoredPage(
        number, bytes([seed] * 16), bytes([seed + 100] * 16), array("i", range(seed, seed + 16)), b"x" * seed
    )


def fill(kv: KvDirectory, number: int, value: float) -> None:
    for layer in kv.cache:
        for tensor in (layer.k, layer.v, layer.index_k):
            if tensor is not None:
                tensor[number] = value


def kept(path: Path, **options: object) -> list[StoredPage]:
    kv = directory(path, **options)  # type: ignore[arg-type]
    try:
        return [s for s in kv.stored() if kv.intact(s.page)]
    finally:
        kv.close()


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    kv = directory(tmp_path / "kv")
    for number in (3, 0, 5):
        fill(kv, number, number + 1.0)
        kv.record(page(number))
    kv.close()
    return tmp_path / "kv"


def test_pages_come_back_in_the_order_they_were_recorded(filled: Path) -> None:
    assert kept(filled) == [page(3), page(0), page(5)]
    assert kept(filled) == [page(3), page(0), page(5)], "reading changes nothing"
    kv = directory(filled)
    assert all(float(t[3].min()) == 4.0 == float(t[3].max()) for t in (kv.cache[1].k, kv.cache[1].v))
    kv.close()


def test_a_page_written_again_is_not_believed_until_recorded(filled: Path) -> None:
    kv = directory(filled)
    fill(kv, 0, 9.0)
    kv.close()
    assert kept(filled) == [page(3), page(5)]
    kv = directory(filled)
    fill(kv, 0, 7.0)
    kv.record(page(0, seed=20))
    kv.close()
    assert kept(filled) == [page(3), page(5), page(0, seed=20)]


def test_the_same_prefix_in_a_new_page_replaces_the_old_one(filled: Path) -> None:
    kv = directory(filled)
    fill(kv, 1, 2.0)
    kv.record(page(1, seed=3))
    kv.close()
    assert [s.page for s in kept(filled)] == [0, 5, 1]


@pytest.mark.parametrize("place", ["k", "v", "index_k"])
def test_one_flipped_bit_of_a_page_is_seen(filled: Path, place: str) -> None:
    kv = directory(filled)
    getattr(kv.cache[1], place)[5].view(torch.uint8).flatten()[77] ^= 4
    kv.close()
    assert kept(filled) == [page(3), page(0)]


def test_a_journal_cut_anywhere_keeps_its_whole_entries(filled: Path) -> None:
    whole = (filled / JOURNAL).read_bytes()
    sizes = [len(kv_journal.encode(Entry(page(n), bytes(16)))) for n in (3, 0, 5)]
    head = len(whole) - sum(sizes)
    ends = [head + sum(sizes[:n]) for n in range(4)]
    for cut in range(0, len(whole) + 1, 7):
        (filled / JOURNAL).write_bytes(whole[:cut])
        assert [s.page for s in kept(filled)] == [3, 0, 5][: sum(end <= cut for end in ends[1:])], cut


def test_a_damaged_journal_is_believed_up_to_the_damage(filled: Path) -> None:
    whole = (filled / JOURNAL).read_bytes()
    for at in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        (filled / JOURNAL).write_bytes(damaged)
        found = kept(filled)
        assert found == [page(3), page(0), page(5)][: len(found)]
        assert len(found) < 3, at


def test_foreign_files_are_ignored_with_a_reason(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert kept(filled, key=b"another model") == []
    assert "another model" in caplog.text
    assert kept(filled) == [], "and what was there is gone: its pages may have been overwritten"
    for content in (b"", b"PK", b"not a journal at all" * 9):
        (filled / JOURNAL).write_bytes(content)
        assert kept(filled) == []


def test_another_size_of_pool_begins_afresh(filled: Path) -> None:
    assert kept(filled, pages=7) == []
    (filled / POOL).write_bytes(b"short")
    assert kept(filled, pages=7) == []


def test_a_directory_serves_one_process_at_a_time(tmp_path: Path) -> None:
    kv = directory(tmp_path)
    with pytest.raises(EngineConfigError, match="in use by another"):
        directory(tmp_path)
    kv.close()
    directory(tmp_path).close()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineConfigError, match="cannot be used"):
        directory(tmp_path / "file")


def test_no_room_is_an_error_at_the_start_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(EngineConfigError, match="No space left"):
        directory(tmp_path / "kv")
    assert not (tmp_path / "kv" / POOL).exists()
    monkeypatch.undo()
    directory(tmp_path / "kv").close()


def test_a_really_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(EngineConfigError, match="No space left"):
            directory(small / "kv", pages=4000)
        kv = directory(small / "kv")
        fill(kv, 1, 1.0)
        kv.record(page(1))
        descriptor = os.open(small / "rest", os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while True:
                os.write(descriptor, bytes(512))
        os.close(descriptor)
        fill(kv, 2, 2.0)  # its room was reserved
        for _ in range(200):
            kv.record(page(2))  # the journal is given up, nothing else
        assert kv.intact(2)
        kv.close()
        (small / "rest").unlink()
        assert page(1) in kept(small / "kv")
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def engine(model: Model, path: Path, **options: object) -> Engine:
    return Engine(
        model,
        kv_bytes=60 * CONFIG.page_bytes(),
        chunk_tokens=64,
        max_running=4,
        kv_dir=path,
        fingerprint=b"f",
        **options,  # type: ignore[arg-type]
    )


def ask(e: Engine, prompt: list[int]) -> Request:
    r = Request(prompt, SamplingParams(max_tokens=9, temperature=0, ignore_eos=True), record_selection=True)
    list(e.generate(r))
    return r


def test_a_new_engine_goes_on_where_the_old_one_was(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(tiny_checkpoint, backend=BACKEND)
    plain = Engine(model, kv_bytes=60 * CONFIG.page_bytes(), chunk_tokens=64)
    cold = ask(plain, PROMPT)
    first = engine(model, tmp_path)
    assert ask(first, PROMPT).output == cold.output
    first.close()
    second = engine(model, tmp_path)
    warm = ask(second, PROMPT)
    assert warm.cached_tokens == len(PROMPT) // BLOCK * BLOCK
    assert (warm.output, warm.selections) == (cold.output, cold.selections)
    # A page edited behind its back is read anew, and all after it.
    second.prefix_cache.clear()
    second.close()
    third = engine(model, tmp_path)
    entries = {s.tokens.tobytes(): s.page for s in third.kv_dir.stored()}  # type: ignore[union-attr]
    victim = entries[array("i", PROMPT[4 * BLOCK : 5 * BLOCK]).tobytes()]
    third.runner.cache[1].k[victim] += 1
    again = ask(third, PROMPT)
    assert again.cached_tokens < 5 * BLOCK + BLOCK
    assert (again.output, again.selections) == (cold.output, cold.selections)
    assert third.pages.used == 0
    third.close()


CHILD = """
import random, sys
from pathlib import Path
from longsight.engine import Engine, Request, SamplingParams
from longsight.model import load_model
from tiny_checkpoint import CONFIG
model = load_model(sys.argv[1], backend=sys.argv[3])
options = {"chunk_tokens": 64, "max_running": 4, "kv_dir": Path(sys.argv[2]), "fingerprint": b"f"}
e = Engine(model, kv_bytes=60 * CONFIG.page_bytes(), **options)
print("ready", flush=True)
rng = random.Random(int(sys.argv[4]))
while True:
    prompt = rng.choices(range(256), k=rng.randint(50, 500))
    list(e.generate(Request(prompt, SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))))
"""


def test_kill_9_at_any_moment(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Whatever a killed process left behind, every page believed holds exactly what a cold run computes."""
    model = load_model(tiny_checkpoint, backend=BACKEND)
    rng, believed = random.Random(9), 0
    for seed in range(4):
        arguments = [str(tiny_checkpoint), str(tmp_path), BACKEND, str(seed)]
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.05, 0.5))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        kv = KvDirectory.open(
            tmp_path,
            fingerprint=_mark(model),
            layouts=[CONFIG.page_layout(i) for i in range(CONFIG.num_layers)],
            pages=60,
        )
        intact = [s for s in kv.stored() if kv.intact(s.page)]
        kv.close()
        believed += len(intact)
        by_digest = {s.digest: s for s in intact}
        for last in intact[-2:]:
            chain = [last]
            while chain[-1].parent in by_digest:
                chain.append(by_digest[chain[-1].parent])
            prompt = [t for s in reversed(chain) for t in s.tokens] + [7]
            e = engine(model, tmp_path)
            warm = ask(e, prompt)
            e.close()
            assert warm.output == ask(Engine(model, kv_bytes=60 * CONFIG.page_bytes()), prompt).output
    assert believed > 0


def _mark(model: Model) -> bytes:
    from longsight.ops import kernels

    return b"f" + f"{model.backend.NAME} {kernels.isa() if model.backend.NAME == 'cpu' else ''}".encode()


def test_fingerprints_tell_checkpoints_apart(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path)
    before = fingerprint(path)
    assert before == fingerprint(path)
    weights = next(path.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    assert fingerprint(path) != before
    config = path / "config.json"
    changed = fingerprint(path)
    config.write_text(config.read_text().replace("{", "{ ", 1))
    assert fingerprint(path) != changed
