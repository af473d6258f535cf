"""``python -m bench.quality STUDY.toml [--out DIR]``: train every arm with every seed, evaluate, write the report.

The same command goes on where it stopped: a run under way from its newest checkpoint, an evaluation from its last
cell. A run that failed is kept as failed until --retry. With --report only what is there already is reported.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.machine import ROOT
from bench.quality.report import collect, write_report
from bench.quality.running import carry_out
from bench.quality.study import Study
from longsight.ops.errors import LongsightError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m bench.quality", description=__doc__)
    parser.add_argument("study", type=Path, help="as bench/quality/text.toml")
    parser.add_argument("--out", type=Path, help="runs and results; default: bench/work/quality/STUDY")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the report goes (docs)")
    parser.add_argument("--report", action="store_true", help="train and evaluate nothing")
    parser.add_argument("--retry", action="store_true", help="begin failed runs anew")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="runs side by side (1)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads of each; default: cores / jobs")
    args = parser.parse_args(arguments)
    try:
        study = Study.from_file(args.study)
        out = args.out or ROOT / "bench" / "work" / "quality" / study.name
        if not args.report:
            study.check_data()
            carry_out(study, out, retry=args.retry, jobs=args.jobs, threads=args.threads)
        record = collect(study, out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(write_report(study, record, args.docs))
    except LongsightError as error:
        print(f"quality: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("quality: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
