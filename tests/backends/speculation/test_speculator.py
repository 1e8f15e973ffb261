"""The proposers are asked in turn, for the sequences that can use a guess."""

from collections.abc import Sequence
from itertools import count

import pytest

from backends.contract import SamplingParams
from backends.engine.config import SpeculationConfig
from backends.engine.request import Request
from backends.engine.runner import ScheduledSequence
from backends.speculation.draft import DraftProposer
from backends.speculation.speculator import Speculator


class CountingDraftModel:
    """A draft model that counts on from the last token."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], int]] = []
        self.forgotten: list[Request] = []

    def propose(self, requests: Sequence[Request], num_tokens: int) -> list[list[int]]:
        """last + 1, last + 2, …"""
        self.calls.append(([r.request_id for r in requests], num_tokens))
        return [[r.token_ids[-1] + 1 + i for i in range(num_tokens)] for r in requests]

    def forget(self, request: Request) -> None:
        """Remember who ended."""
        self.forgotten.append(request)


def decoding(
    name: str,
    tokens: list[int],
    *,
    prediction: list[int] | None = None,
    max_tokens: int = 100,
) -> Request:
    """A sequence whose newest token alone has no KV."""
    request = Request(
        request_id=name,
        prompt_token_ids=tokens,
        params=SamplingParams(),
        max_tokens=max_tokens,
        prediction_token_ids=prediction,
    )
    request.num_computed_tokens = len(tokens) - 1
    return request


def speculator(method: str, model: CountingDraftModel | None = None) -> Speculator:
    """With a clock that ticks once per reading."""
    config = SpeculationConfig(method=method, draft_model="nano")  # type: ignore[arg-type]
    made = Speculator.from_config(config, draft_model=model, now_ns=count().__next__)
    assert made is not None
    return made


def test_speculator_off_is_none() -> None:
    """`off` has no proposers at all."""
    assert Speculator.from_config(SpeculationConfig(method="off"), now_ns=lambda: 0) is None


def test_speculator_draft_without_a_model_is_refused() -> None:
    """`draft` cannot go without; `auto` can."""
    config = SpeculationConfig(method="draft", draft_model="nano")
    with pytest.raises(ValueError, match="no draft model was loaded"):
        Speculator.from_config(config, now_ns=lambda: 0)
    speculator("auto")


def test_speculator_own_prediction_goes_before_lookup_and_draft() -> None:
    """Each request gets the guess of the first proposer that has one."""
    model = CountingDraftModel()
    predicted = decoding("p", [1, 2, 3, 1, 2], prediction=[7, 8])
    repeating = decoding("r", [1, 2, 3, 1, 2])
    fresh = decoding("f", [1, 2, 3, 4, 5])
    auto = speculator("auto", model)
    for _ in range(4):  # the first steps of `auto` are plain ones
        auto.propose([predicted, repeating, fresh])
        auto.step_took(3, 0, 1_000_000)
    assert (predicted.draft_source, predicted.draft_token_ids) == ("prediction", [7, 8])
    assert (repeating.draft_source, repeating.draft_token_ids[:2]) == ("ngram", [3, 1])
    assert (fresh.draft_source, fresh.draft_token_ids) == ("draft", [6, 7])
    assert model.calls == [(["f"], 2)]  # a first try


def test_speculator_asks_only_for_sequences_that_can_use_a_guess() -> None:
    """Not for a prompt in progress, nor for the last token; never more than may be generated."""
    prefilling = decoding("a", [1, 2, 1, 2])
    prefilling.num_computed_tokens = 0
    last = decoding("b", [1, 2, 1, 2], max_tokens=1)
    near_end = decoding("c", [1, 2, 1, 2], max_tokens=3)
    speculator("ngram").propose([prefilling, last, near_end])
    assert [len(r.draft_token_ids) for r in (prefilling, last, near_end)] == [0, 0, 2]


def test_speculator_draft_model_is_called_once_for_the_batch() -> None:
    """One call as deep as the deepest limit; the others' guesses are cut."""
    model = CountingDraftModel()
    proposer = DraftProposer(model)
    requests = [decoding("a", [1]), decoding("b", [5])]
    assert proposer.propose(requests, [1, 3]) == [[2], [6, 7, 8]]
    assert model.calls == [(["a", "b"], 3)]
    assert proposer.propose([], []) == []


def test_speculator_counts_predictions_on_the_request() -> None:
    """Only the request's own prediction is counted as such."""
    chosen = speculator("ngram")
    predicted = decoding("p", [1, 2, 3], prediction=[7, 8, 9])
    repeating = decoding("r", [1, 2, 1, 2])
    chosen.propose([predicted, repeating])
    for request in (predicted, repeating):
        drafts = len(request.draft_token_ids)
        chosen.verified(ScheduledSequence(request, 2, 1 + drafts, drafts), 1)
    assert predicted.spent.prediction_accepted == 1
    assert predicted.spent.prediction_rejected == 2
    assert repeating.spent.prediction_accepted == repeating.spent.prediction_rejected == 0


def test_speculator_forgets_ended_requests_everywhere() -> None:
    """The draft model hears of every end, to free its KV."""
    model = CountingDraftModel()
    ended = decoding("r", [1, 2, 1, 2])
    chosen = speculator("auto", model)
    chosen.propose([ended])
    chosen.forget(ended)
    assert model.forgotten == [ended]
