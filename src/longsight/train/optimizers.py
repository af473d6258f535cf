"""Muon for matrices and AdamW for the rest, as one thing that steps, clips and can be saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from longsight.model import ConfigError
from longsight.train.config import INDEX_GROUPS, GroupConfig, OptimizerConfig
from longsight.train.muon import Muon, cut_like

Groups = Mapping[str, Mapping[str, nn.Parameter]]


class Optimizers:
    """Each group of `Network.parameter_groups` under its own algorithm and rates.

    The backbone's gradients and the index branch's are clipped to norms of their own: neither loss reaches the other's
    parameters, so one norm over both would let a spike of one slow the other.
    Raises ConfigError for a group without settings, and for Muon on what are not matrices.
    """

    def __init__(self, groups: Groups, config: OptimizerConfig) -> None:
        for name, parameters in groups.items():
            _check(name, parameters, config)
        kinds = {name: config.groups[name].kind for name in groups}
        muon = [_muon(name, p, config.groups[name]) for name, p in groups.items() if kinds[name] == "muon"]
        adamw = [_adamw(name, p, config.groups[name]) for name, p in groups.items() if kinds[name] == "adamw"]
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        if muon:
            self._optimizers["muon"] = Muon(muon)
        if adamw:
            self._optimizers["adamw"] = torch.optim.AdamW(adamw)
        self._backbone = [p for name, group in groups.items() if name not in INDEX_GROUPS for p in group.values()]
        self._index = [p for name, group in groups.items() if name in INDEX_GROUPS for p in group.values()]
        self.configure(config)

    def configure(self, config: OptimizerConfig, factor: float = 1.0) -> None:
        """Take rates (times `factor`), decays and clips from `config`; which algorithm trains a group stays."""
        self._clip, self._clip_index = config.clip, config.clip_index
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                settings = config.groups[group["name"]]
                group["lr"], group["weight_decay"] = settings.lr * factor, settings.decay

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> tuple[Tensor, Tensor]:
        """Clip and step; returns the gradient norms of backbone and index branch from before the clip.

        A parameter without gradient stays as it is, its momentum too.
        """
        norms = (
            nn.utils.clip_grad_norm_(self._backbone, self._clip),
            nn.utils.clip_grad_norm_(self._index, self._clip_index) if self._index else torch.zeros(()),
        )
        for optimizer in self._optimizers.values():
            optimizer.step()
        return norms

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on with the same bits."""
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the state of `Optimizers` over the same groups; its tensors may be whole where parameters are cut among
        processes. Raises ConfigError if the groups differ."""
        if state.keys() != self._optimizers.keys():
            raise ConfigError(f"the saved optimisers are {sorted(state)}; this run has {sorted(self._optimizers)}")
        for name, optimizer in self._optimizers.items():
            saved, ours = (
                [(g["name"], g["param_names"]) for g in s["param_groups"]]
                for s in (state[name], optimizer.state_dict())
            )
            if saved != ours:
                raise ConfigError(f"the saved {name} state is of other parameters than this run's")
            optimizer.load_state_dict(state[name])
            for parameter, values in optimizer.state.items():
                for key, value in values.items():
                    if value.shape == parameter.shape and not isinstance(value, DTensor):
                        values[key] = cut_like(value, parameter)


def _check(name: str, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
    if name not in config.groups:
        raise ConfigError(f"no optimiser for parameter group {name!r}; there is one for {', '.join(config.groups)}")
    wrong = next((n for n, p in parameters.items() if p.ndim != 2), None)
    if config.groups[name].kind == "muon" and wrong is not None:
        raise ConfigError(f"optimizer.{name}: Muon trains matrices only, and {wrong} is none; expected 'adamw'")


def _muon(name: str, parameters: Mapping[str, nn.Parameter], settings: GroupConfig) -> dict[str, Any]:
    return {
        "params": list(parameters.items()),
        "name": name,
        "lr": settings.lr,
        "weight_decay": settings.decay,
        "momentum": settings.momentum,
        "ns_steps": settings.newton_schulz,
    }


def _adamw(name: str, parameters: Mapping[str, nn.Parameter], settings: GroupConfig) -> dict[str, Any]:
    return {
        "params": list(parameters.items()),
        "name": name,
        "lr": settings.lr,
        "weight_decay": settings.decay,
        "betas": settings.betas,
        "eps": settings.eps,
    }
