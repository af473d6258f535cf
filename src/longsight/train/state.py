"""Networks of a run: how they begin, what of them is saved, and how they leave."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longsight.model.errors import CheckpointError
from longsight.model.tokenizer import FILE as TOKENIZER
from longsight.model.tokenizer import Tokenizer
from longsight.model.tokenizer_config import TOKENIZER_CONFIG
from longsight.train import start
from longsight.train.config import TrainConfig
from longsight.train.data import Data
from longsight.train.export import load_tensors, save
from longsight.train.muon import cut_like
from longsight.train.network import Network
from longsight.train.optimizers import Optimizers
from longsight.train.parallel import whole

FORMAT = 1


def begin(config: TrainConfig, device: torch.device) -> Network:
    """The network before its first step: read from [model].path, or started from the seed; the same in each process."""
    run = config.run
    dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
    # The compiled kernels are for CPU tensors.
    backend = run.backend or ("reference" if device.type != "cpu" else None)
    network = Network(config.model.config, backend, run.checkpointing, dtype=dtype)
    if config.model.path is not None:
        load_tensors(network, config.model.path)
    elif config.model.start == "spelling":
        assert config.tokenizer.path is not None  # or the configuration is refused
        start.spelling(network, run.seed, Tokenizer.from_file(config.tokenizer.path).tokens())
    else:
        start.STARTS[config.model.start](network, run.seed)
    return network.to(device)


def capture(network: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
    """All that training changes, whole and on the CPU, however it is cut among processes; to be called by all."""
    return {"format": FORMAT, "network": whole(network.state_dict()), "optimizers": whole(optimizers.state_dict())}


def check_format(state: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError unless `state`, read from `path`, is what this version's `capture` wrote."""
    found = state.get("format") if isinstance(state, Mapping) else None
    if found != FORMAT:
        raise CheckpointError(f"{path} has format {found!r}; this version reads checkpoints of format {FORMAT}")


@torch.no_grad()
def restore(state: Mapping[str, Any], network: nn.Module, optimizers: Optimizers) -> None:
    """Put back what `capture` took, also with another number of processes. Raises CheckpointError for another model."""
    ours, theirs = network.state_dict(), state["network"]
    for name in ours.keys() | theirs.keys():
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(f"the checkpoint is of another model: {name} is {shapes[1]} in it, {shapes[0]} here")
    for name, tensor in ours.items():
        tensor.copy_(cut_like(theirs[name].to(tensor.device), tensor))
    optimizers.load_state_dict(state["optimizers"])


def export(network: Network, weights: Mapping[str, Tensor], config: TrainConfig, data: Data, directory: Path) -> None:
    """Write a whole network, its tokenizer and its chat template as a checkpoint directory to serve."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer, begun_from = directory / TOKENIZER, config.model.path
    if not data.write_tokenizer(tokenizer) and begun_from is not None and (begun_from / TOKENIZER).exists():
        for name in (TOKENIZER, TOKENIZER_CONFIG):
            if (begun_from / name).exists():
                shutil.copyfile(begun_from / name, directory / name)
    if config.tokenizer.chat_template is not None:
        shutil.copyfile(config.tokenizer.chat_template, directory / "chat_template.jinja")
    save(network, directory, None, config.model.config.dtype, state=weights)


def fingerprint(config: TrainConfig) -> str:
    """What losses depend on, as text: all but where files go and how often."""
    run = config.run
    return repr((config.model, config.data, config.stages, run.seed, run.precision, run.backend))
