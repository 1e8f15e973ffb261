"""`python -m gateway.learning --outcomes F --out DIR`: what `headgate policy fit` runs as a child.

With --opinions instead, qualities come from feedback out of the ledger. Writes head.npz, words.npz,
card.json, judges.json, predictions.jsonl, curves.json and curves.png; with --encoder the second
head, second.npz and second.json, too. Exit codes: 0 written, 2 something given cannot be used.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from gateway.errors import SettingsError
from gateway.learning.card import card_of, gain_of
from gateway.learning.cascades import cascade_card
from gateway.learning.design import Design
from gateway.learning.head_file import write_head
from gateway.learning.judges import fit_judges, judges_card
from gateway.learning.near_duplicates import balanced_groups
from gateway.learning.opinions import fit_opinions, read_opinions
from gateway.learning.outcomes import Outcomes, OutcomesError, read_outcomes
from gateway.learning.plots import write_curves
from gateway.learning.quality import FOLDS, Fitted, fit_quality, served
from gateway.learning.second_stage import (
    Embedder,
    EncoderError,
    EncoderProcess,
    FewRowsError,
    SecondStage,
    remove_second,
)
from gateway.routing.classifier import SHIPPED_HEAD, Head
from gateway.routing.judges import arrays_of, write_judges


def fit_head(
    outcomes: Outcomes, base_folder: Path, out: Path, embedder: Embedder | None = None
) -> dict[str, Any]:
    """Fit, measure and write everything; returns the card. Raises SettingsError for the base.

    Args:
        embedder: of the second head; None: there is none.
    """
    base = Head.load(base_folder)
    groups, threshold = balanced_groups(outcomes.prompts, folds=FOLDS)
    design = Design(base)
    fitted = fit_quality(design, outcomes, groups)
    measured = ~outcomes.practice
    part, part_groups = (outcomes.only(measured), fitted.only(measured)), groups[measured]
    card = card_of(*part, part_groups) | {"near_duplicate_threshold": threshold}
    card |= {"quality_from": "outcomes", "practice_rows": int(outcomes.practice.sum())}
    judged = fit_judges(outcomes, fitted.quality, fitted.folds, "")
    card["judges"] = judges_card(judged.judges)
    card["cascade"] = cascade_card(outcomes, fitted, judged, groups)
    second = None if embedder is None else _fit_second(*part, part_groups, embedder)
    card["second_stage"] = None if second is None else second.summary
    network = served(design, fitted), fitted.calibration.groups
    card = write_head(base, base_folder, card, out, fitted=network, beside=arrays_of(judged.judges))
    remove_second(out) if second is None else second.write(card["version"], out)
    write_judges(replace(judged.judges, head=card["version"]), out)
    write_predictions(*part, out / "predictions.jsonl")
    if len(outcomes.backends) > 1 and not write_curves(*part, part_groups, out):
        print("curves.png: not drawn, matplotlib is missing: pip install 'headgate[train]'",
              file=sys.stderr)  # fmt: skip
    return card


def _fit_second(
    outcomes: Outcomes, fitted: Fitted, groups: Any, embedder: Embedder
) -> SecondStage | None:
    """The second head; None, and a word about it, where it cannot be fitted."""
    try:
        return SecondStage.fit(outcomes, fitted, groups, embedder)
    except (EncoderError, FewRowsError) as error:
        print(f"second.npz: not fitted: {error}", file=sys.stderr)
        return None


def write_predictions(outcomes: Outcomes, fitted: Fitted, path: Path) -> None:
    """One line a row of the file: its fold, and what a head that had not seen it said."""
    gains = gain_of(fitted)
    with path.open("w", encoding="utf-8") as file:
        for row, quality in enumerate(fitted.quality):
            p = dict(zip(outcomes.backends, np.round(quality, 6).tolist(), strict=True))
            line = {
                "row": row,
                "fold": int(fitted.folds[row]),
                "p": p,
                "gain": round(float(gains[row]), 6),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gateway.learning", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--outcomes", type=Path)
    source.add_argument("--opinions", type=Path, help="feedback out of the ledger, JSON Lines")
    parser.add_argument(
        "--practice",
        type=Path,
        action="append",
        default=[],
        metavar="F",
        help="outcomes that are only fitted on; may be given more than once",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--head", type=Path, default=SHIPPED_HEAD, help="tasks come from this one")
    parser.add_argument("--encoder", help="of the second head; without one it is not fitted")
    chosen = parser.parse_args(arguments)
    embedder = EncoderProcess(chosen.encoder) if chosen.encoder else None
    try:
        if chosen.opinions is not None:
            card = fit_opinions(read_opinions(chosen.opinions), chosen.head, chosen.out)
        else:
            outcomes = read_outcomes(chosen.outcomes, *chosen.practice)
            card = fit_head(outcomes, chosen.head, chosen.out, embedder)
    except (OutcomesError, SettingsError) as error:
        print(f"headgate: {error}", file=sys.stderr)
        return 2
    print(json.dumps(card, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
