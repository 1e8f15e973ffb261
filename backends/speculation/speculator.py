"""Which proposer guesses for which request, before each step; and what became of its guesses."""

from collections.abc import Callable, Sequence

from backends.engine.config import SpeculationConfig
from backends.engine.request import Request
from backends.engine.runner import ScheduledSequence
from backends.speculation.controller import Controller
from backends.speculation.draft import DraftModel, DraftProposer
from backends.speculation.ngram import NgramProposer
from backends.speculation.prediction import PredictionProposer
from backends.speculation.proposer import Proposer


class Speculator:
    """Asks the proposers in turn; the first that has a guess for a request provides its drafts."""

    def __init__(
        self,
        config: SpeculationConfig,
        proposers: Sequence[Proposer],
        *,
        now_ns: Callable[[], int],
    ) -> None:
        self._num_tokens = config.num_tokens
        self._proposers = tuple(proposers)
        self._controller = Controller(config.num_tokens) if config.method == "auto" else None
        self._now_ns = now_ns

    @classmethod
    def from_config(
        cls,
        config: SpeculationConfig,
        *,
        draft_model: DraftModel | None = None,
        now_ns: Callable[[], int],
    ) -> "Speculator | None":
        """The proposers that a configuration names; None if it turns speculation off.

        Raises:
            ValueError: it names a draft model and none is given.
        """
        if config.method == "off":
            return None
        proposers: list[Proposer] = [PredictionProposer()]
        if config.method in ("auto", "ngram"):
            proposers.append(NgramProposer())
        if config.method == "draft" and draft_model is None:
            raise ValueError("speculation.method is 'draft', but no draft model was loaded")
        if config.method in ("auto", "draft") and draft_model is not None:
            proposers.append(DraftProposer(draft_model))
        return cls(config, proposers, now_ns=now_ns)

    def propose(self, running: Sequence[Request]) -> None:
        """Set `draft_token_ids` and `draft_source` of the running sequences that decode."""
        open_requests = [r for r in running if r.is_decoding and r.num_remaining_tokens > 1]
        if not open_requests:
            return
        num_sequences = len(running)
        if self._controller is not None and self._controller.plain_step(num_sequences):
            return
        for proposer in self._proposers:
            asked = open_requests
            if proposer.name == "prediction":
                asked = [r for r in asked if r.prediction_token_ids]
            if asked and self._ask(proposer, asked, num_sequences):
                open_requests = [r for r in open_requests if not r.draft_token_ids]

    def verified(self, part: ScheduledSequence, accepted: int) -> None:
        """What became of one sequence's drafts."""
        request = part.request
        if request.draft_source == "prediction":
            request.spent.prediction_accepted += accepted
            request.spent.prediction_rejected += part.num_drafts - accepted
        if self._controller is not None:
            self._controller.verified(request.draft_source, request, part.num_drafts, accepted)

    def step_took(self, num_sequences: int, num_drafts: int, took_ns: int) -> None:
        """A step in which every sequence decoded took so long."""
        if self._controller is not None:
            self._controller.step_took(num_sequences, num_drafts, took_ns)

    def forget(self, request: Request) -> None:
        """The request has ended."""
        for proposer in self._proposers:
            proposer.forget(request)
        if self._controller is not None:
            self._controller.forget(request)

    def _ask(self, proposer: Proposer, asked: list[Request], num_sequences: int) -> bool:
        """Let one proposer guess; True if it guessed anything."""
        if self._controller is None:
            limits: list[int] | None = [self._num_tokens * proposer.reach] * len(asked)
        else:
            limits = self._controller.limits(proposer, asked, num_sequences)
        if limits is None:
            return False
        limits = [
            min(limit, request.num_remaining_tokens - 1)
            for limit, request in zip(limits, asked, strict=True)
        ]
        if 0 in limits:
            asked = [request for request, limit in zip(asked, limits, strict=True) if limit]
            limits = [limit for limit in limits if limit]
        if not asked:
            return False
        began = self._now_ns()
        drafts = proposer.propose(asked, limits)
        took = self._now_ns() - began
        guessed = 0
        for request, draft in zip(asked, drafts, strict=True):
            if draft and request.matcher is not None:
                del draft[request.matcher.allowed(request.output_token_ids, draft) :]
            if draft:
                request.draft_token_ids = draft
                request.draft_source = proposer.name
                guessed += len(draft)
        if self._controller is not None:
            self._controller.guessed(proposer.name, asked, guessed, took)
        return guessed > 0
