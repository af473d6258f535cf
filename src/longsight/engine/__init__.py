"""Many requests over one model: pages, scheduling, sampling, and the step that runs them."""

from longsight.engine.counters import Counters
from longsight.engine.defaults import SamplingDefaults
from longsight.engine.driver import DriverStats, EngineDriver, Stream
from longsight.engine.engine import Engine
from longsight.engine.errors import (
    ContextLengthError,
    DeadlineExceededError,
    DrainingError,
    EngineConfigError,
    EngineError,
    EngineStoppedError,
    InvalidRequestError,
    ModelOutputError,
    OutOfPagesError,
    PageAccountingError,
    QueueFullError,
    StepFailedError,
)
from longsight.engine.pages import PagePool
from longsight.engine.params import Grammar, SamplingParams
from longsight.engine.prefix_cache import PrefixCache
from longsight.engine.request import Request, Selection, StepStats, Update
from longsight.engine.sampler import TokenLogprob

__all__ = [
    "ContextLengthError",
    "Counters",
    "DeadlineExceededError",
    "DrainingError",
    "DriverStats",
    "Engine",
    "EngineConfigError",
    "EngineDriver",
    "EngineError",
    "EngineStoppedError",
    "Grammar",
    "InvalidRequestError",
    "ModelOutputError",
    "OutOfPagesError",
    "PageAccountingError",
    "PagePool",
    "PrefixCache",
    "QueueFullError",
    "Request",
    "SamplingDefaults",
    "SamplingParams",
    "Selection",
    "StepFailedError",
    "StepStats",
    "Stream",
    "TokenLogprob",
    "Update",
]
