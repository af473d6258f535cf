"""Many requests over one model: pages, scheduling, sampling, and the step that runs them."""

from longsight.engine.defaults import SamplingDefaults
from longsight.engine.driver import DriverStats, EngineDriver, Stream
from longsight.engine.engine import Engine
from longsight.engine.errors import (
    ContextLengthError,
    EngineConfigError,
    EngineError,
    EngineStoppedError,
    InvalidRequestError,
    OutOfPagesError,
    PageAccountingError,
    QueueFullError,
    StepFailedError,
)
from longsight.engine.pages import PageAllocator
from longsight.engine.request import Request, SamplingParams, Selection, StepStats, Update

__all__ = [
    "ContextLengthError",
    "DriverStats",
    "Engine",
    "EngineConfigError",
    "EngineDriver",
    "EngineError",
    "EngineStoppedError",
    "InvalidRequestError",
    "OutOfPagesError",
    "PageAccountingError",
    "PageAllocator",
    "QueueFullError",
    "Request",
    "SamplingDefaults",
    "SamplingParams",
    "Selection",
    "StepFailedError",
    "StepStats",
    "Stream",
    "Update",
]
