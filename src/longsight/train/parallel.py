"""Several processes as one run, started by torchrun: who am I, sums over all, and a network whose gradients agree.

The global batch does not depend on the number of processes: each takes its share of the packed rows, and every mean is
a sum over all processes divided by a count summed over all processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from longsight.ops.errors import UnsupportedError


@dataclass(frozen=True)
class Processes:
    """This process among `size`; rank 0 writes the files. device: where its share of the work runs."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Over all processes, in fp64 on the CPU; the same bits in each."""
        if self.size == 1:
            return values.double().cpu()
        total = values.to(self.device, torch.float64)
        dist.all_reduce(total)
        return total.cpu()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def shard(self, network: nn.Module) -> None:
        """FSDP2: cut the weights of each layer among the processes; a layer is whole only while it runs.

        The parameters become DTensors, so optimisers are made after this.
        """
        if self.size == 1:
            return
        mesh = init_device_mesh(self.device.type, (self.size,))
        layers = network.layers
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(network, mesh=mesh)

    def synced(self, network: nn.Module, *, unused: bool) -> nn.Module:
        """The module to call in training, in whose backward passes gradients become means over the processes.

        unused: some parameters get no gradient, as the index branch under dense attention.
        """
        if self.size == 1 or isinstance(network, FSDPModule):
            return network
        return DistributedDataParallel(network, find_unused_parameters=unused)


@contextmanager
def processes() -> Iterator[Processes]:
    """The processes that torchrun started (nccl where each has a GPU, else gloo), or this one alone."""
    size, rank, local = (int(os.environ.get(name, value)) for name, value in _ENVIRONMENT)
    cuda = torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise UnsupportedError(
            f"process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; start as "
            "many processes, or hide the GPUs with CUDA_VISIBLE_DEVICES="
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size == 1:
        yield Processes(device=device)
        return
    dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=size)
    yield Processes(rank, size, device)
    # Not after an error, where the others may never come. Without the wait, a process that is done takes the group down
    # under the others' feet, and now and then one aborts.
    dist.barrier()
    dist.destroy_process_group()


_ENVIRONMENT = (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))


def number(value: Tensor) -> float:
    """A scalar that may be spread over processes."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)


def accumulate(module: nn.Module, last: bool) -> None:
    """Say before a backward pass whether it is the step's last one: gradients travel between processes only then."""
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = last
    elif isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)


def whole(tree: Any) -> Any:
    """A copy of nested dicts and lists with every tensor whole, on the CPU; to be called by all processes at once."""
    return _map(tree, lambda x: (x.full_tensor() if isinstance(x, DTensor) else x).detach().cpu().clone())


def _map(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _map(value, function) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_map(value, function) for value in tree)
    return tree
