"""Before anybody is served: does this model, on this machine, compute anything sensible at all?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longsight.engine.errors import ModelOutputError
from longsight.ops import Batch

if TYPE_CHECKING:
    from longsight.model import Model

TOKENS = 24
_CONSEQUENCE = (
    ": its weights are damaged or this backend is broken here, and it will not be served; check the files, or try "
    "--backend reference"
)


@torch.inference_mode()
def probe(model: Model) -> None:
    """Run a short fixed prompt and one decode step after it. Raises ModelOutputError if the logits are not all finite,
    or all the same: what broken kernels, damaged weights and overflowing types give."""
    size, vocab = model.config.block_size, model.config.vocab_size
    tokens = torch.arange(1, TOKENS + 1) * 37 % vocab
    pages = list(range(-(-TOKENS // size)))
    cache = model.allocate_cache(len(pages))
    for name, begin, end in (("a prompt", 0, TOKENS - 1), ("a decode step", TOKENS - 1, TOKENS)):
        batch = Batch.build([(end - begin, end, pages)])
        logits = model.forward(tokens[begin:end], batch, cache)
        bad = logits.numel() - int(torch.isfinite(logits).sum())
        if bad:
            raise ModelOutputError(
                f"the model gives {bad:,} of {logits.numel():,} logits that are not finite for {name} "
                f"(backend {model.backend.NAME}, {str(model.dtype).removeprefix('torch.')}){_CONSEQUENCE}"
            )
        if (logits == logits[:, :1]).all():
            raise ModelOutputError(
                f"the model gives every token the same logit for {name} (backend {model.backend.NAME}){_CONSEQUENCE}"
            )
