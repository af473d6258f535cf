"""One layer's attention in a step that trains the index branch, over documents packed into one row.

The index branch reads its input without passing a gradient back and its teacher is constant: the KL moves nothing but
the branch, the language model's loss never moves the branch (arXiv:2606.13392, section on training).
Legend: T packed rows, C hidden size, H_kv groups, k blocks kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from longsight.hf.attention import Branches, row_tables
from longsight.hf.rows import Rows
from longsight.ops.training import Documents, TrainingBackend

Mode = Literal["warmup", "sparse"]


@dataclass
class Trace:
    """What the layers of one forward pass do and what they find, layer after layer.

    mode      "warmup": attention stays dense, the branch learns from all visible keys;
              "sparse": attention reads the chosen blocks, the branch learns on them
    measure   whether to find the captured mass too, which costs a second attention
    kl        fp32 scalars, with gradients to the branch
    captured  the share of dense attention inside the chosen blocks, over rows that see more than k blocks; nan without
    """

    mode: Mode
    documents: Documents
    backend: TrainingBackend
    measure: bool = False
    kl: list[Tensor] = field(default_factory=list)
    captured: list[float] = field(default_factory=list)


def traced_forward(
    branches: Branches, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], trace: Trace
) -> Tensor:
    """hidden_states [1, T, C] -> [1, T, C]."""
    module, indexer, docs, ops = branches.module, branches.indexer, trace.documents, trace.backend
    assert indexer is not None
    x = hidden_states[0]
    tables = row_tables(branches, Rows(*hidden_states.shape[:2]), position_embeddings)
    q, k, v = branches.queries(x, tables), branches.keys(x, tables), branches.values(x)
    index_q, index_k = branches.index_queries(x.detach(), tables), branches.index_keys(x.detach(), tables)
    block, scale = branches.block_size, module.scaling
    sparse = trace.mode == "sparse"
    if sparse or trace.measure:
        ids = ops.select_blocks(
            index_q.detach(),
            index_k.detach(),
            docs,
            block_size=block,
            topk=indexer.topk_blocks,
            local_blocks=indexer.local_blocks,
        )
    teacher = q.detach(), k.detach()
    if sparse:
        y, lse = ops.sparse_attention(q, k, v, ids, docs, block_size=block, scale=scale)
        kl = ops.sparse_kl(index_q, index_k, *teacher, lse, ids, docs, block_size=block, scale=scale)
    else:
        y, lse = ops.dense_attention(q, k, v, docs, scale=scale)
        kl = ops.dense_kl(index_q, index_k, *teacher, lse, docs, scale=scale)
    trace.kl.append(kl)
    if trace.measure:
        with torch.no_grad():
            if sparse:
                caught, whole = lse, ops.dense_attention(*teacher, v.detach(), docs, scale=scale)[1]
            else:
                caught = ops.sparse_attention(*teacher, v.detach(), ids, docs, block_size=block, scale=scale)[1]
                whole = lse
            mass = ops.captured_mass(caught, whole, k.shape[1])
            trace.captured.append(mass[docs.positions // block >= indexer.topk_blocks].mean().item())
    out: Tensor = module.o_proj(y.flatten(1))
    return out[None]
