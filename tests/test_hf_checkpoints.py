"""Checkpoints in both directions: what we write loads in stock transformers, what it saves loads here.

Loaded means no tensor missing, none left over, and the same logits: transformers itself only warns and starts tensors
at random.
"""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

import longsight.hf
import oracle
from longsight.cli.main import main
from longsight.hf import ConversionError
from longsight.hf.convert import Settings, convert
from longsight.model import ConfigError, ModelConfig, load_model
from longsight.model.built_in import EMBEDDED_DIR
from longsight.model.checkpoint import Checkpoint
from longsight.model.transformers_names import to_transformers
from longsight.model.weights import canonical
from longsight.train import export
from paged_run import PagedRun
from tiny_checkpoint import CONFIG, write_tiny_checkpoint
from tiny_hf import write_byte_tokenizer, write_dense_checkpoint

ROOT = Path(__file__).parents[1]
TOLERANCE = 5e-5  # fp32 logits of rms about 1.4
TEXT = "The secret code for the amber lantern is 4417. " * 30


def loaded(directory: Path, auto: Any = AutoModelForCausalLM, **options: Any) -> Any:
    """A stock model whose every tensor came from the directory."""
    model, found = auto.from_pretrained(directory, output_loading_info=True, dtype=torch.float32, **options)
    assert {what: list(names) for what, names in found.items() if names} == {}
    return model.eval()


def ours(directory: Path, tokens: Tensor) -> Tensor:
    """fp32 logits [T, V] of the served model."""
    run = PagedRun(load_model(directory, dtype=torch.float32), [tokens])
    run.step(len(tokens))
    return run.logits()


@torch.no_grad()
def theirs(model: Any, tokens: Tensor) -> Tensor:
    found: Tensor = model(tokens[None], use_cache=False).logits[0]
    return found


def prompt(vocab: int, n: int = 203) -> Tensor:
    return torch.randint(3, vocab, (n,), generator=torch.Generator().manual_seed(0))


def agree(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE * max(1.0, float(b.abs().max()) / 5))


def test_what_training_writes_loads_in_transformers(tmp_path: Path) -> None:
    """Full and sparse, dense and MoE layers."""
    network = export.from_checkpoint(write_tiny_checkpoint(tmp_path / "tiny"), backend="reference")
    out = export.save(network, tmp_path / "out", EMBEDDED_DIR / "tokenizer.json", dtype=torch.float32)
    tokens = prompt(CONFIG.vocab_size)
    agree(theirs(loaded(out), tokens), ours(out, tokens))
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.pad_token_id == json.loads((out / "generation_config.json").read_text())["pad_token_id"]
    assert tokenizer.model_max_length == CONFIG.max_position_embeddings


@pytest.mark.parametrize("kind", ["text", "outer"])
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    """transformers saves, we load; we train on from it and export, transformers loads; it saves again, we load."""
    model = oracle.build(oracle.text_config()) if kind == "text" else oracle.build_vision(oracle.text_config())
    auto = AutoModelForCausalLM if kind == "text" else AutoModelForImageTextToText
    saved = oracle.save(model, tmp_path / "saved")
    tokens = prompt(384)
    want = theirs(model, tokens)
    agree(theirs(loaded(saved, auto), tokens), want)
    agree(ours(saved, tokens), want)
    exported = export.save(export.from_checkpoint(saved, backend="reference"), tmp_path / "out", dtype=torch.float32)
    agree(ours(exported, tokens), want)
    again = loaded(exported)
    agree(theirs(again, tokens), want)
    agree(ours(oracle.save(again, tmp_path / "again"), tokens), want)


def test_names_keep_the_bits(tmp_path: Path) -> None:
    """Fusing and renaming loses nothing, and names that are transformers' already stay."""
    checkpoint = Checkpoint(write_tiny_checkpoint(tmp_path))
    named = {str(canonical(name)): checkpoint.read(name) for name in checkpoint.shapes}
    out = to_transformers(named)
    assert sum(t.numel() for t in out.values()) == sum(t.numel() for t in named.values())
    moe = "layers.1.block_sparse_moe."
    fused = out["model.layers.1.mlp.experts.gate_up_proj"]
    assert torch.equal(fused[3], torch.cat((named[f"{moe}experts.3.w1.weight"], named[f"{moe}experts.3.w3.weight"])))
    assert torch.equal(out["model.layers.1.mlp.experts.down_proj"][2], named[f"{moe}experts.2.w2.weight"])
    again = to_transformers({str(canonical(name)): tensor for name, tensor in out.items()})
    assert again.keys() == out.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in out.items())


def test_the_embedded_model_loads_in_transformers() -> None:
    model = loaded(EMBEDDED_DIR)
    tokens = torch.tensor(AutoTokenizer.from_pretrained(EMBEDDED_DIR)(TEXT)["input_ids"])
    assert len(tokens) > 256, "several blocks more than are chosen"
    agree(theirs(model, tokens), ours(EMBEDDED_DIR, tokens))


def test_the_embedded_model_answers_a_padded_batch() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIR)
    model = loaded(EMBEDDED_DIR, attn_implementation="longsight")
    asked = [[{"role": "user", "content": f"{TEXT * n}What is the secret code for the amber lantern?"}] for n in (1, 2)]
    texts = [tokenizer.apply_chat_template(a, tokenize=False, add_generation_prompt=True) for a in asked]
    options = {"max_new_tokens": 30, "do_sample": False}
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    assert not batch["attention_mask"].all()
    answers = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for text, answer in zip(texts, answers, strict=True):
        alone = tokenizer(text, return_tensors="pt")
        first = model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :]
        assert answer[: len(first)].tolist() == first.tolist()
        assert "4417" in tokenizer.decode(answer)


def test_what_conversion_writes_loads_pads_and_is_not_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_dense_checkpoint(tmp_path / "dense", "qwen3")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in settings.items() if key != "pad_token"})
    )
    out = tmp_path / "sparse"
    quick = Settings(block_size=16, topk=3, length=64, warmup_steps=1, continue_steps=1)
    convert(source, [ROOT / "docs" / "selection.md"], out, quick)
    tokenizer, model = AutoTokenizer.from_pretrained(out), loaded(out)
    assert tokenizer.pad_token == "<end>"
    batch = tokenizer(["a longer text", "short"], return_tensors="pt", padding=True, padding_side="left")
    answers = model.generate(**batch, max_new_tokens=3, do_sample=False)
    alone = model.generate(**tokenizer("short", return_tensors="pt"), max_new_tokens=3, do_sample=False)
    assert answers[1, -3:].tolist() == alone[0, -3:].tolist()
    with pytest.raises(ConfigError, match=r"'longsight_qwen3'.*longsight\.hf\.load"):
        ModelConfig.from_file(out)
    for command in (
        ["serve", str(out), "--port", "0"],
        ["generate", str(out), "--prompt", "hello"],
        ["eval", str(out)],
    ):
        more = ["--lengths", "256", "--out", str(tmp_path / "results")] if command[0] == "eval" else []
        assert main([*command, *more]) == 1
        error = capsys.readouterr().err
        assert "longsight_qwen3" in error
        assert "longsight.hf.load" in error


@pytest.mark.parametrize("path", ["nope", "org/nope", __file__, str(ROOT / "docs")])
def test_what_is_no_model_directory_never_goes_to_the_network(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(time, "sleep", refuse)
    caplog.set_level(logging.INFO)
    with pytest.raises(OSError, match=re.escape(path)):
        longsight.hf.load(path)
    with pytest.raises(ConversionError, match=re.escape(path)):
        convert(path, [ROOT / "README.md"], tmp_path / "out", Settings())
    assert not (tmp_path / "out").exists()
    assert caplog.records == []


def examples() -> list[tuple[str, str]]:
    """Every Python snippet of docs/transformers.md, by the heading that it stands under."""
    sections = re.split(r"^## (.*)$", (ROOT / "docs" / "transformers.md").read_text(), flags=re.MULTILINE)
    pairs = zip(sections[1::2], sections[2::2], strict=True)
    return [(name, code) for name, text in pairs for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


@pytest.mark.parametrize(("section", "code"), examples(), ids=[f"{i}" for i in range(len(examples()))])
def test_the_documented_lines_run(
    section: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outer = oracle.save(oracle.build_vision(oracle.text_config()), tmp_path / "path" / "to" / "MiniMax-M3")
    write_byte_tokenizer(outer)
    monkeypatch.chdir(tmp_path)
    if "qwen3-sparse" in code:
        source = write_dense_checkpoint(tmp_path / "dense", "qwen3")
        quick = Settings(block_size=16, topk=3, length=64, warmup_steps=1, continue_steps=1)
        convert(source, [ROOT / "docs" / "selection.md"], tmp_path / "qwen3-sparse", quick)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["model"].config._attn_implementation == "longsight"
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]
    if "print(" in code:
        assert "4417" in capsys.readouterr().out
