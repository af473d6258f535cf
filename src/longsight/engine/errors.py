"""Errors of the engine. Each message names the offending value and what would be accepted."""

from __future__ import annotations

from longsight.ops import LongsightError


class EngineError(LongsightError):
    """Base of the engine's errors."""


class EngineConfigError(EngineError, ValueError):
    """The engine cannot be built with these limits or with this much memory."""


class InvalidRequestError(EngineError, ValueError):
    """A request that is wrong in itself, whatever the engine is doing. `param` names the field, or is None."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(InvalidRequestError):
    """Prompt and answer together can never fit the context limit or the page pool."""

    def __init__(
        self, prompt_tokens: int, max_tokens: int, max_model_len: int, block_size: int, total_pages: int
    ) -> None:
        needed = prompt_tokens + max_tokens
        super().__init__(
            f"the prompt's {prompt_tokens} tokens and max_tokens {max_tokens} need {needed} tokens of context "
            f"({-(-needed // block_size)} pages of {block_size}); there are {max_model_len} tokens per request "
            f"and {total_pages} pages in all",
            "max_tokens" if prompt_tokens < max_model_len else "prompt",
        )
        self.prompt_tokens, self.max_tokens, self.max_model_len = prompt_tokens, max_tokens, max_model_len


class OutOfPagesError(EngineError):
    """More pages were asked for than are free."""

    def __init__(self, needed: int, free: int, total: int) -> None:
        super().__init__(f"{needed} pages are needed, {free} of {total} are free")
        self.needed, self.free, self.total = needed, free, total


class PageAccountingError(EngineError):
    """A page was returned twice, or was never in the pool: a defect in the engine, never in a request."""


class QueueFullError(EngineError):
    """Too many requests wait already; try again later."""

    def __init__(self, waiting: int, limit: int) -> None:
        super().__init__(f"{waiting} requests wait already and the queue holds {limit}; try again later")
        self.waiting, self.limit = waiting, limit


class StepFailedError(EngineError):
    """The step that this request took part in raised; `__cause__` has the original error."""


class EngineStoppedError(EngineError):
    """The engine has been closed and takes no more requests."""


class ModelOutputError(EngineError):
    """The model computes nothing that could be sampled from: damaged weights, or a backend that is broken here."""


class DrainingError(EngineStoppedError):
    """The engine finishes what it has and takes no more requests."""


class DeadlineExceededError(EngineError):
    """A request's deadline passed before its answer was complete."""
