"""Longsight: MiniMax-M3-style models with exact sparse attention on the hardware you have."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longsight.chat.messages import ToolCall
    from longsight.engine import Grammar, SamplingParams
    from longsight.llm import LLM
    from longsight.outputs import CompletionOutput, RequestOutput, StreamOutput, ToolCallDelta

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "CompletionOutput",
    "Grammar",
    "RequestOutput",
    "SamplingParams",
    "StreamOutput",
    "ToolCall",
    "ToolCallDelta",
    "__version__",
]
_MODULES = {
    "LLM": "longsight.llm",
    "CompletionOutput": "longsight.outputs",
    "Grammar": "longsight.engine",
    "RequestOutput": "longsight.outputs",
    "SamplingParams": "longsight.engine",
    "StreamOutput": "longsight.outputs",
    "ToolCall": "longsight.chat.messages",
    "ToolCallDelta": "longsight.outputs",
}


def __getattr__(name: str) -> Any:
    # On first use: `longsight --help` and tools that only want a part need not wait for torch.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'longsight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
