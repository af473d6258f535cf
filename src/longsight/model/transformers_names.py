"""The tensors of a checkpoint that transformers' text-only M3 class loads: the opposite direction of weights.canonical.

transformers renames and fuses the published tensors for its multimodal class only. Its text class (`model_type`
minimax_m3_vl_text) starts with random weights, and no error, where a tensor has another name than its own.

Legend: h hidden size, I intermediate size, E experts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(w[123])\.weight")
_RENAMES = (
    (".self_attn.index_", ".self_attn.indexer."),
    (".block_sparse_moe.e_score_correction_bias", ".mlp.gate.e_score_correction_bias"),
    (".block_sparse_moe.", ".mlp."),
)


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their canonical names -> by the names of the text class, with the same values.

    Fuses gate_proj and up_proj [I, h] to gate_up_proj [2I, h], w1 and w3 of all experts to gate_up_proj [E, 2I, h], and
    w2 to down_proj [E, h, I]. Tensors that are fused already only get their names.
    """
    renamed: dict[str, Tensor] = {}
    experts: dict[str, dict[str, dict[int, Tensor]]] = {}  # "...experts" -> "w1" -> expert -> tensor
    for canonical, tensor in tensors.items():
        name = canonical if canonical.startswith("lm_head.") else f"model.{canonical}"
        for ours, theirs in _RENAMES:
            name = name.replace(ours, theirs)
        expert = _EXPERT.fullmatch(name)
        if expert:
            prefix, number, part = expert.groups()
            experts.setdefault(prefix, {}).setdefault(part, {})[int(number)] = tensor
        else:
            renamed[name] = tensor
    for name in [name for name in renamed if name.endswith(".gate_proj.weight")]:
        prefix = name.removesuffix("gate_proj.weight")
        gate, up = renamed.pop(name), renamed.pop(f"{prefix}up_proj.weight")
        renamed[f"{prefix}gate_up_proj.weight"] = torch.cat((gate, up))
    for prefix, parts in experts.items():
        w1, w2, w3 = (torch.stack([parts[part][i] for i in range(len(parts[part]))]) for part in ("w1", "w2", "w3"))
        renamed[f"{prefix}.gate_up_proj"] = torch.cat((w1, w3), 1)
        renamed[f"{prefix}.down_proj"] = w2
    return renamed
