"""What the question alone is worth, and what looking back costs.

Quality: `policy fit` on a file of outcomes, beside chance, prompt length, singles, the oracle and
the best offline models that the same folds allow (any size, nothing of it could serve a request).
Speed: `decide` with 20 rules, an explanation, and the replay of a ledger, rows per second.
"""

import argparse
import asyncio
import gzip
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
from gateway.routing.classifier import SHIPPED_HEAD, Head
from tests.benchmarks.environment import describe, write
from tests.benchmarks.replayed import measure_replay

EXPLAINED = 300
ENCODED_AT_ONCE = 64
COMMON = 800
"""n-gram buckets that trees may split on, the most frequent ones."""


def measure_quality(file: Path, *, offline_too: bool) -> dict[str, Any]:
    """The card's figures, and the offline models' area on the same rows and folds."""
    outcomes = _read(file)
    groups, _ = balanced_groups(outcomes.prompts, folds=FOLDS)
    design = Design(Head.load(SHIPPED_HEAD))
    fitted = fit_quality(design, outcomes, groups)
    card = card_of(outcomes, fitted, groups)
    shown = {
        "outcomes_sha256": outcomes.sha256,
        "backends": outcomes.backends,
        **{key: card[key] for key in KEPT},
    }
    if not offline_too:
        return shown
    said = {name: model(design, outcomes, fitted) for name, model in OFFLINE.items()}
    said["all of these, averaged with ours"] = np.mean([*said.values(), fitted.quality], axis=0)
    offline = {name: area_of(outcomes, quality, groups) for name, quality in said.items()}
    best = max(entry["value"] for entry in offline.values())
    return {
        **shown,
        "offline_area": offline,
        "share_of_best_offline": round(card["area"]["value"] / best, 4),
    }


def _read(file: Path) -> Outcomes:
    """Outcomes, also compressed ones."""
    if file.suffix != ".gz":
        return read_outcomes(file)
    with TemporaryDirectory() as folder:
        plain = Path(folder) / file.stem
        plain.write_bytes(gzip.decompress(file.read_bytes()))
        return read_outcomes(plain)


KEPT = (
    "rows", "groups", "test_rows", "costs", "auc", "ece", "apgr", "cpt50", "cpt80", "area",
    "apgr_above_length", "gain_apgr", "above_control", "cost_share_at_95", "baselines", "quality",
    "sensitivity",
)  # fmt: skip


def area_of(outcomes: Outcomes, quality: Any, groups: Any) -> dict[str, Any]:
    """The area under the cost–quality curve of predicted qualities [N, K]."""
    rows = complete(outcomes)
    scores, costs = outcomes.scores[rows], outcomes.costs[rows]
    routers = {
        "router": by_merit(quality[rows], costs.mean(0, keepdims=True), scores, costs),
        "oracle": by_merit(scores, costs, scores, costs),
    }
    return asdict(Figure.of(cost_curves(routers, scores, costs, groups[rows]).area("router")))


def _out_of_fold(outcomes: Outcomes, fitted: Fitted, x: Any, make: Callable[[], Any]) -> Any:
    """[N, K] of a classifier over the pattern of passes, each row by a fit without its fold."""
    passed = outcomes.scores >= 0.5
    pattern = passed @ (1 << np.arange(passed.shape[1]))
    quality = np.zeros(outcomes.scores.shape)
    for fold in np.unique(fitted.folds):
        inside, outside = fitted.folds == fold, (fitted.folds != fold) & (fitted.folds != FOLDS)
        model = make().fit(x[outside], pattern[outside])
        chance = model.predict_proba(x[inside])
        for place in range(passed.shape[1]):
            quality[inside, place] = chance[:, (model.classes_ >> place) & 1 == 1].sum(1)
    return quality


def _dense(design: Design, outcomes: Outcomes) -> Any:
    x = design.matrix(outcomes.prompts)
    counts = np.asarray((x[:, : design.rows] > 0).sum(0)).ravel()
    common = np.argsort(-counts, kind="stable")[:COMMON]
    return np.hstack([x[:, design.rows :].toarray(), x[:, common].toarray()])


def _logistic(design: Design, outcomes: Outcomes, fitted: Fitted) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True)
    x = words.fit_transform(outcomes.prompts)
    return _out_of_fold(
        outcomes, fitted, x, lambda: LogisticRegression(C=10, max_iter=200, tol=1e-3)
    )


def _forest(design: Design, outcomes: Outcomes, fitted: Fitted) -> Any:
    from sklearn.ensemble import ExtraTreesClassifier

    return _out_of_fold(
        outcomes, fitted, _dense(design, outcomes),
        lambda: ExtraTreesClassifier(200, min_samples_leaf=2, max_features=0.15, random_state=0),
    )  # fmt: skip


def _boosting(design: Design, outcomes: Outcomes, fitted: Fitted) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return _out_of_fold(
        outcomes, fitted, _dense(design, outcomes),
        lambda: HistGradientBoostingClassifier(max_iter=80, max_leaf_nodes=15, random_state=0),
    )  # fmt: skip


def _minilm(outcomes: Outcomes) -> Any:
    """[N, D] unit vectors of the bundled encoder."""
    from backends.encoder import SentenceEncoder, encoder_folder

    encoder = SentenceEncoder(encoder_folder("bundled:minilm"), threads=2)
    batches = range(0, len(outcomes.prompts), ENCODED_AT_ONCE)
    return np.concatenate(
        [encoder.encode(outcomes.prompts[at : at + ENCODED_AT_ONCE]) for at in batches]
    )


def _embeddings(design: Design, outcomes: Outcomes, fitted: Fitted) -> Any:
    from sklearn.linear_model import LogisticRegression

    x = np.hstack([_minilm(outcomes) * 10, _dense(design, outcomes)[:, :-COMMON]])
    return _out_of_fold(
        outcomes, fitted, x, lambda: LogisticRegression(C=0.3, max_iter=100, tol=1e-3)
    )


def _second_stage(design: Design, outcomes: Outcomes, fitted: Fitted) -> Any:
    """Our head's own logits beside the encoder's vector: what a second look would know."""
    from sklearn.linear_model import LogisticRegression

    first = np.clip(fitted.quality, 1e-3, 1 - 1e-3)
    x = np.hstack([np.log(first / (1 - first)), _minilm(outcomes) * 3])
    return _out_of_fold(
        outcomes, fitted, x, lambda: LogisticRegression(C=0.3, max_iter=100, tol=1e-3)
    )


OFFLINE: dict[str, Callable[[Design, Outcomes, Fitted], Any]] = {
    "logistic regression on character n-grams": _logistic,
    "extremely randomised trees": _forest,
    "gradient boosting": _boosting,
    "logistic regression on MiniLM and our counts": _embeddings,
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
    parser.add_argument(
        "--offline", action="store_true", help="fit the offline models, too (ten minutes)"
    )
    parser.add_argument("--rows", type=int, default=100_000, help="requests to replay")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    figures = describe("routing by the question alone, explanations, and replays of a ledger")
    figures["results"] = {}
    with TemporaryDirectory() as folder:
        figures["results"]["replay"] = asyncio.run(measure_replay(Path(folder), chosen.rows))
    figures["results"]["explain"] = asyncio.run(measure_explain())
    if chosen.outcomes:
        figures["results"]["question_alone"] = measure_quality(
            chosen.outcomes, offline_too=chosen.offline
        )
    write(chosen.out, figures)
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
