"""`policy fit`, unchanged, on outcomes from elsewhere: which of two models was right, by question.

Files are JSON Lines as `policy fit` reads them, or CSV with a column `prompt` and a column of True
and False per model, as RouteLLM publishes its own (github.com/lm-sys/RouteLLM, routellm/evals,
MMLU and GSM8K: Mixtral-8x7B beside GPT-4; Ong et al. 2024). None of them lies here.

    python -m tests.benchmarks.bench_outside gsm8k=FILE.csv mmlu=FILE.csv,FILE.csv --out …

`--look gsm8k`: with the second head, too, that `policy fit` fits beside the first where an encoder
is at hand (it reads each question four times: minutes a thousand).
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.environment import describe, write

KEPT = ("data_sha256", "rows", "weak", "strong", "auc", "ece", "area", "above_control")
SHOWN = ("apgr", "cpt50", "cpt80")
RIGHT = {"True": 1.0, "False": 0.0}


def converted(files: Sequence[Path]) -> Iterator[str]:
    """The lines of all files, as outcomes."""
    csv.field_size_limit(sys.maxsize)
    for file in files:
        if file.suffix != ".csv":
            yield from file.read_text(encoding="utf-8").splitlines()
            continue
        with file.open(newline="", encoding="utf-8") as rows:
            for row in csv.DictReader(rows):
                scores = {
                    column.rpartition("/")[2]: RIGHT[value]
                    for column, value in row.items()
                    if value in RIGHT
                }
                yield json.dumps({"prompt": row["prompt"], "scores": scores, "suite": file.stem})


def fitted(files: Sequence[Path], folder: Path, *, look: bool) -> dict[str, Any]:
    """The card of a head fitted by the command that users have."""
    outcomes = folder / "outcomes.jsonl"
    outcomes.write_text("".join(f"{line}\n" for line in converted(files)), encoding="utf-8")
    command = [sys.executable, "-m", "gateway", "policy", "fit", "--json"]
    command += [] if look else ["--no-second-stage"]
    command += ["--outcomes", str(outcomes), "--out", str(folder / "head")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    card: dict[str, Any] = json.loads(done.stdout)
    return card


def judged(card: dict[str, Any]) -> dict[str, Any]:
    """A card's figures, and whether chance and the longest prompts are beaten beyond doubt."""
    length = card["baselines"]["length"]
    figures = {name: card[name] for name in SHOWN}
    found = {
        **{key: card[key] for key in KEPT},
        "router": figures,
        "length": {key: length[key] for key in SHOWN},
        "apgr_above_length": card["apgr_above_length"],
        **_beaten(figures, card["baselines"]),
    }
    second = card["second_stage"]
    if second is None:
        return found
    figures = {name: second[name]["second"] for name in SHOWN}
    above = second["apgr_above_length"]["second"]
    look = {name: second[name] for name in ("area", "helps")}
    look |= {"router": figures, "apgr_above_length": above}
    return found | {"second_look": look | _beaten(figures, card["baselines"])}


def _beaten(router: dict[str, Any], baselines: dict[str, Any]) -> dict[str, bool]:
    return {
        f"beats_{who}": router["apgr"]["low"] > baselines[name]["apgr"]["value"]
        and router["cpt50"]["high"] < baselines[name]["cpt50"]["value"]
        for who, name in (("length", "length"), ("chance", "shuffled"))
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE[,FILE…]")
    parser.add_argument("--look", action="append", default=[], metavar="NAME")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    figures = describe("policy fit on outcomes from elsewhere, out of fold, 95 % intervals")
    figures["results"] = {}
    for named in chosen.files:
        name, _, files = named.partition("=")
        with TemporaryDirectory() as folder:
            began = time.monotonic()
            paths = [Path(file) for file in sorted(files.split(","))]
            card = fitted(paths, Path(folder), look=name in chosen.look)
            figures["results"][name] = {**judged(card), "wall_s": round(time.monotonic() - began)}
        write(chosen.out, figures)
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
