"""Probabilities out of logits of patterns."""

import numpy as np
import pytest

from gateway.routing.figures import log_odds
from gateway.routing.forms import BITS, form_rows, form_spans
from gateway.routing.together import Together, groups_of
from gateway.routing.words import Words

GROUPS = groups_of([["a", "b"], ["c"], ["b"]])


def test_the_last_group_that_names_a_backend_speaks_for_it() -> None:
    """Marginals of each group's patterns; a follower is a line over the reference's log-odds."""
    together = Together(GROUPS, "a", {"d": (2.0, 1.0)})
    logits = np.log([0.1, 0.2, 0.3, 0.4, 0.25, 0.75, 0.9, 0.1])
    quality = together.quality(logits)
    assert quality["a"] == pytest.approx(0.6)
    assert quality["c"] == pytest.approx(0.75)
    assert quality["b"] == pytest.approx(0.1)
    assert log_odds(quality["d"]) == pytest.approx(2 * np.log(0.6 / 0.4) + 1)


@pytest.mark.parametrize("reference", ["a", "b", "c"])
def test_slopes_are_how_log_odds_follow_logits(reference: str) -> None:
    """Against small steps of each logit."""
    together = Together(GROUPS, reference, {reference: (1.5, 0.2)})
    logits = np.random.default_rng(1).normal(size=8)
    steps = [
        log_odds(together.quality(logits + step)[reference])
        - log_odds(together.quality(logits - step)[reference])
        for step in 1e-5 * np.eye(8)
    ]
    assert together.slopes(logits) == pytest.approx(np.array(steps) / 2e-5, abs=1e-4)


def test_forms_know_numbers_that_words_do_not() -> None:
    """Buckets once each, ascending, within their table; values, first digits and signs count."""
    words = Words()

    def rows(text: str) -> list[int]:
        return list(map(int, form_rows(words.read(text))))

    one = rows("What is 12 + 7?")
    assert one == sorted(set(one))
    assert 0 <= one[0] < one[-1] < 1 << BITS
    assert one == rows("what is 12 + 7?")
    for other in ("What is 92 + 7?", "What is 12 * 7?", "What is 12 + 8?", "What is 12 + 70?"):
        assert set(rows(other)) - set(one), other
    assert len(rows(" ".join(map(str, range(500))))) < 450


@pytest.mark.parametrize("text", ["", "7", "a b", "3 + 4 = ?", "one two 55 three 6 four", "九 九"])
def test_spans_name_the_same_buckets_as_rows(text: str) -> None:
    """Each form stands with the tokens that made it, at least one of them."""
    read = Words().read(text)
    spans, count = form_spans(read), len(read.places)
    assert {bucket for bucket, *_ in spans} == set(form_rows(read).tolist())
    assert all(0 <= start < stop <= count for _, start, stop in spans) or not count
