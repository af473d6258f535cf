"""What an evaluation refuses."""

from __future__ import annotations

from longsight.ops.errors import LongsightError


class EvalError(LongsightError, ValueError):
    """An evaluation that cannot be run as asked: a length too short for its task, too little text, a name unknown."""
