"""What a model can do at which length: generated long-context tasks, loss by position, and honest intervals."""

from longsight.evals.errors import EvalError
from longsight.evals.sample import Question, Sample
from longsight.evals.suite import SUITES, EvalSettings, evaluate
from longsight.evals.variants import Variant

__all__ = ["SUITES", "EvalError", "EvalSettings", "Question", "Sample", "Variant", "evaluate"]
