"""Networks to and from checkpoint directories, which transformers' text-only M3 class loads as well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from longsight.model import CheckpointError, ModelConfig
from longsight.model.checkpoint import SINGLE, Checkpoint
from longsight.model.tokenizer import FILE as TOKENIZER
from longsight.model.tokenizer_config import TOKENIZER_CONFIG, write_tokenizer_config
from longsight.model.transformers_names import to_transformers
from longsight.model.weights import checked_names
from longsight.train.network import Network

ROUTER = ("block_sparse_moe.gate.weight", "e_score_correction_bias")  # stored in fp32: rounding moves tokens


def save(
    network: Network,
    directory: str | Path,
    tokenizer_file: str | Path | None = None,
    dtype: torch.dtype = torch.bfloat16,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write config.json, generation_config.json, model.safetensors and, if given, tokenizer.json; returns the place.

    A tokenizer.json that is given, or lies there already, gets a tokenizer_config.json if it has none.
    dtype: of all weights but the routers'. state: the network's state_dict where it has been gathered from several
    processes. Files are written beside and moved, config.json last: a directory that has one is complete.
    Raises CheckpointError if the directory cannot be written.
    """
    directory = Path(directory)
    config = replace(network.config, dtype=dtype)
    tensors = stored(network.state_dict() if state is None else state, dtype)
    generation = {"bos_token_id": config.bos_token_id, "eos_token_id": list(config.eos_token_ids) or None}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").unlink(missing_ok=True)
        staged = directory / f"{SINGLE}.part"
        save_file(tensors, staged, metadata={"format": "pt"})
        staged.replace(directory / SINGLE)
        if tokenizer_file is not None:
            shutil.copyfile(tokenizer_file, directory / TOKENIZER)
        if (directory / TOKENIZER).exists() and (tokenizer_file or not (directory / TOKENIZER_CONFIG).exists()):
            generation["pad_token_id"] = write_tokenizer_config(
                directory, config.bos_token_id, config.eos_token_ids, config.max_position_embeddings
            )
        _write_json(directory / "generation_config.json", {k: v for k, v in generation.items() if v is not None})
        _write_json(directory / "config.json", config.to_dict())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the checkpoint to {directory}: {error}") from error
    return directory


def stored(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a network's state_dict as a checkpoint holds them: transformers' names, on the CPU."""
    return to_transformers(
        {
            name: tensor.detach().to("cpu", torch.float32 if name.endswith(ROUTER) else dtype).contiguous()
            for name, tensor in state.items()
        }
    )


def from_checkpoint(directory: str | Path, **options: Any) -> Network:
    """A network to train on, from a checkpoint in the published names or in transformers'.

    options: `Network`'s, from backend on. Raises what `load_model` raises for a directory that is none.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory; expected one with config.json and safetensors files")
    network = Network(ModelConfig.from_file(directory), **options)
    load_tensors(network, directory)
    return network


@torch.no_grad()
def load_tensors(network: Network, directory: str | Path) -> None:
    """Copy the weights of a checkpoint of the same configuration into the network. Raises CheckpointError."""
    checkpoint = Checkpoint(directory)
    names = checked_names(checkpoint, network.config)
    for name, tensor in network.state_dict().items():
        tensor.copy_(_read(checkpoint, names, name))
    checkpoint.close()


def _read(checkpoint: Checkpoint, names: Mapping[str, str], name: str) -> Tensor:
    """One of the network's tensors, cut out of the fused one where the checkpoint has that."""
    if name in names:
        return checkpoint.read(names[name])
    prefix, part, _ = name.rsplit(".", 2)
    if part in ("gate_proj", "up_proj"):
        return checkpoint.read(names[f"{prefix}.gate_up_proj.weight"]).chunk(2)[part == "up_proj"]
    prefix, expert = prefix.rsplit(".", 1)
    if part == "w2":
        return checkpoint.read(names[f"{prefix}.down_proj"])[int(expert)]
    return checkpoint.read(names[f"{prefix}.gate_up_proj"])[int(expert)].chunk(2)[part == "w3"]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
