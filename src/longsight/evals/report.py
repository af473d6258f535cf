"""Results as tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

Results = Mapping[str, Any]  # what suite.evaluate returns
EXTRA = {
    "evidence_read": "Share of questions whose evidence lay in blocks that some sparse layer and group chose:",
    "log_likelihood": "Log-probability of the right answer, nats, mean over prompts:",
}


def markdown(results: Results) -> str:
    """One table of tasks by lengths per attention, then depth by length, then loss by position."""
    parts = results["parts"]
    out = ["# Evaluation", ""]
    bound = results["about"].get("prompt_tokens", 0)
    fewer = f" or {bound:,} tokens of them" if bound else ""
    in_chat = results["about"].get("chat_template")
    asked = "Asked through the chat template" if in_chat else "Asked to continue a sentence, without a chat template"
    out.append(
        f"{asked}. Greedy answers, {results['about']['trials']} prompts{fewer} per cell, seed "
        f"{results['about']['seed']}. In brackets the 95 % Wilson interval."
    )
    for attention in attentions(results):
        cells = [p for p in parts if p["attention"] == attention and "task" in p]
        if cells:
            out += ["", f"## Accuracy, attention: {attention}", "", *_accuracy(cells)]
            for key, title in EXTRA.items():
                if any(cell.get(key) is not None for cell in cells):
                    out += ["", title, "", *_by_length(cells, partial(_extra, key))]
        deep = [p for p in cells if p.get("by_depth")]
        if deep:
            out += ["", "First question, by the depth of its needle:", "", *_depths(deep)]
        for p in parts:
            if p["attention"] == attention and "loss" in p:
                title = f"## Loss by position, attention: {attention}"
                out += ["", title, "", f"{p['documents']} documents of {p['length']:,} tokens, nats per token.", ""]
                out += _loss(p["loss"])
    skipped = [f"- {p['part']}: {p['skipped']}" for p in parts if "skipped" in p]
    if skipped:
        out += ["", "Left out:", "", *dict.fromkeys(skipped)]
    return "\n".join(out) + "\n"


def attentions(results: Results) -> list[str]:
    """In the order they were run."""
    return list(dict.fromkeys(p["attention"] for p in results["parts"]))


def tokens(count: int) -> str:
    """4096 -> 4K; what is no whole number of 1,024s stays."""
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if count >= size and count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def interval(estimate: Mapping[str, float | None], digits: int = 2) -> str:
    """'0.98 [0.93, 1.00]'; the value alone where there is no interval."""
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    if value is None or math.isnan(value):
        return "-"
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" + "--:|" * (len(head) - 1)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _accuracy(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    return _by_length(cells, _cell)


def _by_length(cells: Sequence[Mapping[str, Any]], show: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """Tasks by lengths."""
    lengths = sorted({c["length"] for c in cells})
    by_place = {(c["task"], c["length"]): show(c) for c in cells}
    rows = [
        [task, *(by_place.get((task, length), "-") for length in lengths)]
        for task in dict.fromkeys(c["task"] for c in cells)
    ]
    return table(["task", *map(tokens, lengths)], rows)


def _extra(key: str, cell: Mapping[str, Any]) -> str:
    figure = cell.get(key)
    if isinstance(figure, Mapping):
        return interval(figure)
    return "-" if figure is None else f"{figure:.2f}"


def _cell(cell: Mapping[str, Any]) -> str:
    return interval(cell["accuracy"]) if "accuracy" in cell else "-"


def _depths(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    depths = sorted({d for c in cells for d in c["by_depth"]}, key=float)
    rows = [
        [
            f"{c['task']}, {tokens(c['length'])}",
            *(f"{c['by_depth'][d]['value']:.2f}" if d in c["by_depth"] else "-" for d in depths),
        ]
        for c in cells
    ]
    return table(["task, length", *(f"{float(d):.0%}" for d in depths)], rows)


def _loss(buckets: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [f"{b['first']:,} to {b['last'] - 1:,}", interval(b, 4), f"{math.exp(min(b['value'], 700)):,.4g}"]
        for b in buckets
    ]
    return table(["positions", "loss", "perplexity"], rows)
