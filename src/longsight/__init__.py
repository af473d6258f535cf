"""Longsight: MiniMax-M3-style models with exact sparse attention on the hardware you have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longsight.engine import Grammar, SamplingParams
    from longsight.llm import LLM, CompletionOutput, RequestOutput

__version__ = "0.1.0"
__all__ = ["LLM", "CompletionOutput", "Grammar", "RequestOutput", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    # On first use: `longsight --help` and tools that only want a part need not wait for torch.
    if name in ("LLM", "CompletionOutput", "RequestOutput"):
        import longsight.llm

        return getattr(longsight.llm, name)
    if name in ("Grammar", "SamplingParams"):
        import longsight.engine

        return getattr(longsight.engine, name)
    raise AttributeError(f"module 'longsight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
