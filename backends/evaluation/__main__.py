"""Measure models: `python -m backends.evaluation MODEL… [--suite …] [--json]`.

MODEL is nano, small, bundled:NAME, a folder, a .gguf file, hf:owner/name, or an endpoint as
URL#MODEL; NAME= before it gives it another name. Exit codes: 0 measured, 1 it failed, 2 bad usage.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from backends.command import exit_with
from backends.errors import BackendError
from backends.evaluation.errors import EvaluationError, UsageError
from backends.evaluation.items import SUITES
from backends.evaluation.outcomes import outcomes, write_lines
from backends.evaluation.run import Measured, Suites, differences, measure, read_suites
from backends.evaluation.table import render
from backends.evaluation.targets import open_target, parse_targets
from backends.gguf.file import is_gguf


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="headgate models eval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("targets", nargs="+", metavar="MODEL")
    parser.add_argument(
        "--suite",
        action="append",
        metavar="NAME",
        help=f"all (default), {', '.join(SUITES)}, or a .jsonl file of your own questions with "
        "`prompt` and `answer`; may be given more than once",
    )
    parser.add_argument(
        "--outputs", type=Path, metavar="F", help="write every answer as JSON Lines"
    )
    parser.add_argument("--outcomes", type=Path, metavar="F", help="write who passes which prompt")
    parser.add_argument("--cards", action="store_true", help="write evaluation.json and the model "
                        "card into each model's folder (all suites)")  # fmt: skip
    parser.add_argument("--limit", type=int, help="of each suite's questions, the first N")
    parser.add_argument("--threads", type=int, help="CPU threads per forward pass")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument(
        "--dtype", default="auto", help="auto (float32 on a CPU, bfloat16 on a GPU), float32, …"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Measure every model in turn, write what was asked for, print the figures."""
    targets = parse_targets(args.targets)
    suites = read_suites(args.suite or ["all"], limit=args.limit)
    in_files = any(target.kind != "engine" or is_gguf(Path(target.model)) for target in targets)
    if args.cards and (suites.is_part or in_files):
        raise UsageError("--cards needs all suites, whole, and models in folders")
    measured = []
    for target in targets:
        candidate = open_target(target, threads=args.threads, device=args.device, dtype=args.dtype)
        try:
            measured.append(measure(candidate, suites, quiet=args.quiet))
        finally:
            candidate.close()
    if args.outputs:
        write_lines(args.outputs, [row for one in measured for row in one.outputs()])
    if args.outcomes:
        write_lines(args.outcomes, _outcomes(suites, measured))
    if args.cards:
        from backends.bundled.card import write_evaluation
        from backends.models.folder import model_folder

        for target, one in zip(targets, measured, strict=True):
            write_evaluation(model_folder(target.model), one.evaluation)
    found, apart = [one.evaluation for one in measured], differences(measured)
    if args.json:
        document = msgspec.json.encode({"models": found, "differences": apart})
        print(msgspec.json.format(document, indent=2).decode())
    else:
        print(render(found, apart))


def _outcomes(suites: Suites, measured: Sequence[Measured]) -> list[object]:
    return [
        row
        for suite in suites.items
        for row in outcomes(suite, {one.evaluation.name: one.asked[suite] for one in measured})
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_args(argv)
    try:
        run(args)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ValueError as error:  # an engine option: --device, --threads
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (EvaluationError, BackendError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    exit_with(main)
