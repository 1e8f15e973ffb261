"""What the question alone is worth, and what looking back costs.

Quality: `policy fit` on a file of outcomes, beside chance, prompt length, singles and the oracle;
on its frozen test rows also beside offline models that are fitted on the same rows as ours (any
size, nothing of them could serve a request).
Speed: `decide` with 20 rules, an explanation, and the replay of a ledger, rows per second.
"""

import argparse
import asyncio
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from msgspec.structs import asdict

from backends.wire import ChatCompletionRequest, Message
from gateway.learning.card import card_of, complete
from gateway.learning.curves import Figure, by_merit, cost_curves
from gateway.learning.design import Design
from gateway.learning.near_duplicates import balanced_groups
from gateway.learning.outcomes import Outcomes, read_outcomes
from gateway.learning.quality import FOLDS, Fitted, fit_quality
from gateway.learning.second_stage import EncoderProcess
from gateway.routing.classifier import SHIPPED_HEAD, Head
from gateway.routing.figures import auc
from gateway.routing.together import passes_of
from tests.benchmarks.environment import describe, write
from tests.benchmarks.replayed import measure_replay

EXPLAINED = 300
COMMON = 800
"""n-gram buckets that trees may split on, the most frequent ones."""


def measure_quality(file: Path, practice: list[Path], *, offline_too: bool) -> dict[str, Any]:
    """The card's figures, ours on the frozen rows alone, and there the offline models'.

    All are fitted on the practice rows, too, and measured on the others.
    """
    outcomes = read_outcomes(file, *practice)
    measured = ~outcomes.practice
    groups, _ = balanced_groups(outcomes.prompts, folds=FOLDS)
    design = Design(Head.load(SHIPPED_HEAD))
    fitted = fit_quality(design, outcomes, groups)
    card = card_of(outcomes.only(measured), fitted.only(measured), groups[measured])
    frozen = measured & (fitted.folds == FOLDS)
    said = {"ours": fitted.quality}
    seconds: dict[str, float] = {}
    if offline_too:
        for name, model in OFFLINE.items():
            began = time.process_time()
            said[name] = model(design, outcomes, fitted)
            seconds[name] = round(time.process_time() - began, 1)
        said[AVERAGE] = np.mean(list(said.values()), axis=0)
    said = {name: quality[frozen] for name, quality in said.items()}
    return {
        "outcomes_sha256": outcomes.sha256,
        "practice_rows": int(outcomes.practice.sum()),
        "backends": outcomes.backends,
        **{key: card[key] for key in KEPT},
        "frozen": {
            "rows": int(frozen.sum()),
            **compared(outcomes.only(frozen), said, groups[frozen]),
        },
        "offline_cpu_s": seconds,
    }


def compared(outcomes: Outcomes, said: dict[str, Any], groups: Any) -> dict[str, Any]:
    """Areas of ours and of each offline model on the same rows and draws; ours as a share of the
    best one's. The best is the best by chance, too: that counts against us."""
    rows = complete(outcomes)
    scores, costs = outcomes.scores[rows], outcomes.costs[rows]
    price = costs.mean(0, keepdims=True)
    routers = {
        name: by_merit(quality[rows], price, scores, costs) for name, quality in said.items()
    }
    curves = cost_curves(
        routers | {"oracle": by_merit(scores, costs, scores, costs)}, scores, costs, groups[rows]
    )
    areas = {name: curves.area(name) for name in routers}
    aucs = {name: _mean_auc(outcomes, quality) for name, quality in said.items()}
    found = {"area": {name: asdict(Figure.of(draws)) for name, draws in areas.items()}, "auc": aucs}
    others = [name for name in said if name != "ours"]
    if not others:
        return found
    best = max(others, key=lambda name: float(areas[name][0]))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(areas[best] > 0, areas["ours"] / areas[best], np.nan)
    return found | {
        "best": best,
        "share_of_best": asdict(Figure.of(share)),
        "behind_best": asdict(Figure.of(areas[best] - areas["ours"])),
        "auc_share_of_best": round(aucs["ours"] / max(aucs[name] for name in others), 4),
    }


def _mean_auc(outcomes: Outcomes, quality: Any) -> float:
    """Over the backends, of the rows on which each was asked."""
    found = []
    for k in range(len(outcomes.backends)):
        known = ~np.isnan(outcomes.scores[:, k])
        found.append(auc(quality[known, k], outcomes.scores[known, k]))
    return round(float(np.mean([one for one in found if one is not None])), 4)


KEPT = (
    "rows", "groups", "test_rows", "costs", "auc", "ece", "apgr", "cpt50", "cpt80", "area",
    "apgr_above_length", "gain_apgr", "above_control", "cost_share_at_95", "baselines", "quality",
    "sensitivity",
)  # fmt: skip


def _frozen(outcomes: Outcomes, fitted: Fitted, x: Any, make: Callable[[], Any]) -> Any:
    """[N, K] of a classifier over the pattern of passes, fitted on all rows but the frozen ones;
    only theirs are filled in."""
    backends = len(outcomes.backends)
    pattern = (outcomes.scores >= 0.5) @ (1 << np.arange(backends))
    quality = np.full(outcomes.scores.shape, np.nan)
    inside = fitted.folds == FOLDS
    model = make().fit(x[~inside], pattern[~inside])
    passes = passes_of(backends)[model.classes_]
    quality[inside] = model.predict_proba(x[inside]) @ passes
    return quality


def _dense(design: Design, outcomes: Outcomes) -> Any:
    x = design.matrix(outcomes.prompts)
    counts = np.asarray((x[:, : design.sparse] > 0).sum(0)).ravel()
    common = np.argsort(-counts, kind="stable")[:COMMON]
    return np.hstack([x[:, design.sparse :].toarray(), x[:, common].toarray()])


def _logistic(design: Design, outcomes: Outcomes, fitted: Fitted) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True)
    x = words.fit_transform(outcomes.prompts)
    return _frozen(outcomes, fitted, x, lambda: LogisticRegression(C=10, max_iter=200, tol=1e-3))


def _forest(design: Design, outcomes: Outcomes, fitted: Fitted) -> Any:
    from sklearn.ensemble import ExtraTreesClassifier

    return _frozen(
        outcomes, fitted, _dense(design, outcomes),
        lambda: ExtraTreesClassifier(200, min_samples_leaf=2, max_features=0.15, random_state=0),
    )  # fmt: skip


def _boosting(design: Design, outcomes: Outcomes, fitted: Fitted) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return _frozen(
        outcomes, fitted, _dense(design, outcomes),
        lambda: HistGradientBoostingClassifier(max_iter=80, max_leaf_nodes=15, random_state=0),
    )  # fmt: skip


@functools.cache
def _encoded(prompts: tuple[str, ...]) -> Any:
    return EncoderProcess()(prompts)


def _minilm(outcomes: Outcomes) -> Any:
    """[N, D] unit vectors of the bundled encoder."""
    return _encoded(tuple(outcomes.prompts))


def _neighbours(design: Design, outcomes: Outcomes, fitted: Fitted) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return _frozen(
        outcomes, fitted, _minilm(outcomes), lambda: KNeighborsClassifier(40, weights="distance")
    )


def _embeddings(design: Design, outcomes: Outcomes, fitted: Fitted) -> Any:
    from sklearn.linear_model import LogisticRegression

    x = np.hstack([_minilm(outcomes) * 10, _dense(design, outcomes)[:, :-COMMON]])
    return _frozen(outcomes, fitted, x, lambda: LogisticRegression(C=0.3, max_iter=100, tol=1e-3))


def _second_stage(design: Design, outcomes: Outcomes, fitted: Fitted) -> Any:
    """Our head's own logits beside the encoder's vector: what a second look would know."""
    from sklearn.linear_model import LogisticRegression

    first = np.clip(fitted.quality, 1e-3, 1 - 1e-3)
    x = np.hstack([np.log(first / (1 - first)), _minilm(outcomes) * 3])
    return _frozen(outcomes, fitted, x, lambda: LogisticRegression(C=0.3, max_iter=100, tol=1e-3))


AVERAGE = "all of these, averaged with ours"
OFFLINE: dict[str, Callable[[Design, Outcomes, Fitted], Any]] = {
    "logistic regression on character n-grams": _logistic,
    "extremely randomised trees": _forest,
    "gradient boosting": _boosting,
    "logistic regression on MiniLM and our counts": _embeddings,
    "nearest neighbours by MiniLM": _neighbours,
    "our head, then logistic regression with MiniLM": _second_stage,
}


async def measure_explain() -> dict[str, float]:
    """Milliseconds of CPU per explanation of a 500-token prompt that was not seen before."""
    from gateway.cli.policy_files import offline_router
    from gateway.settings import BUILT_IN

    router, _ = await offline_router(BUILT_IN)
    samples = []
    for index in range(EXPLAINED):
        text = f"Question {index}: how do tides work, and why are there two a day? " * 30
        request = ChatCompletionRequest(model="auto", messages=[Message(role="user", content=text)])
        began = time.process_time()
        story = await router.explain(router.facts(request), text=text)
        samples.append((time.process_time() - began) * 1e3)
        assert story["winner"]
    samples.sort()
    return {
        "p50_ms": round(statistics.median(samples), 3),
        "p99_ms": round(samples[int(len(samples) * 0.99)], 3),
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outcomes", type=Path, help="JSON Lines (or .gz), as `policy fit` reads")
    parser.add_argument("--practice", type=Path, action="append", default=[], help="only fitted on")
    parser.add_argument(
        "--offline", action="store_true", help="fit the offline models, too (minutes)"
    )
    parser.add_argument("--rows", type=int, default=100_000, help="requests to replay; 0: none")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    figures = describe("routing by the question alone, explanations, and replays of a ledger")
    figures["results"] = {}
    if chosen.rows:
        with TemporaryDirectory() as folder:
            figures["results"]["replay"] = asyncio.run(measure_replay(Path(folder), chosen.rows))
        figures["results"]["explain"] = asyncio.run(measure_explain())
    if chosen.outcomes:
        figures["results"]["question_alone"] = measure_quality(
            chosen.outcomes, chosen.practice, offline_too=chosen.offline
        )
    write(chosen.out, figures)
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
