"""From a request to the backends that may answer it: model names, policy, fit, refusals.

The policy always runs. A named model narrows the candidates; when none is left the refusal says
whether a capability (400), the context (400) or the policy (403) stands in the way.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog
from msgspec.structs import replace

from backends.errors import BackendError
from backends.wire import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from gateway.errors import GatewayError, InvalidRequest, ModelNotFound, Unavailable
from gateway.ledger.access import EVERYTHING, Only
from gateway.ledger.pricing import CostEstimator
from gateway.ledger.records import RequestRecord
from gateway.overrides.model import NOTHING, Effect
from gateway.repeats import Asked
from gateway.routing.classifier import Classifier
from gateway.routing.conversations import Conversations
from gateway.routing.explanation import Routed, expectation, explanation
from gateway.routing.exploring import left_to_chance
from gateway.routing.features import Request, read
from gateway.routing.forecasts import Forecasts
from gateway.routing.health import BackendRegistry
from gateway.routing.judges import Judges
from gateway.routing.moved import moved
from gateway.routing.names import Names, Resolved
from gateway.routing.policy_book import LoadedPolicy, PolicyBook, UnknownPolicy
from gateway.routing.recorded import decided_on
from gateway.routing.refusals import refusal_of, too_small
from gateway.routing.second_look import Looked, SecondLooks
from gateway.settings import Settings
from policies.evaluator import PINNED
from policies.evaluator import decide as decide_policy
from policies.model import BackendCard, BudgetState, CacheRule, Decision, Estimate, Facts
from policies.problems import PolicyError

log = structlog.get_logger(__name__)

_ENDPOINTS: dict[type, str] = {
    ChatCompletionRequest: "chat/completions",
    CompletionRequest: "completions",
    EmbeddingRequest: "embeddings",
}
HOPELESS = 4
"""A prompt whose estimate is this many contexts long is not counted exactly."""


def sticky_draw(sticky_id: str) -> float:
    """A number in [0, 1) that stays the same for one id: chooses the arm of a split."""
    digest = hashlib.blake2b(sticky_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


class Router:
    """Decides, for each request, which backends may answer and in which order.

    Args:
        forecasts: what answers will take; fed by `observe`.
        decides: told once of each version of a policy that decides.
        effect: what operators' overrides mean now.
        conversations: who answered earlier turns.
        second: asks the encoder where that may pay; None: there is none.
    """

    def __init__(
        self,
        settings: Settings,
        classifier: Classifier,
        book: PolicyBook,
        registry: BackendRegistry,
        forecasts: Forecasts | None = None,
        decides: Callable[[LoadedPolicy], None] | None = None,
        effect: Callable[[], Effect] = lambda: NOTHING,
        conversations: Conversations | None = None,
        second: SecondLooks | None = None,
    ) -> None:
        self.names = Names(settings.models, registry, book)
        self._classifier = classifier
        self._book = book
        self._registry = registry
        self.forecasts = forecasts or Forecasts(CostEstimator(settings))
        self._explore = settings.routing.explore
        self._decides = decides
        self._effect = effect
        self._conversations = conversations
        self._second = second
        self._decided: set[tuple[str, str]] = set()
        self._noted: LoadedPolicy | None = None

    def facts(
        self,
        request: Request,
        *,
        team: str = "anonymous",
        key: str = "anonymous",
        user: str | None = None,
        tags: Mapping[str, str] | None = None,
        needs: frozenset[str] = frozenset(),
    ) -> Facts:
        """All that policies may ask about a request. Raises WireError for mixed prompts.

        Args:
            needs: fields that whoever answers must know, beside those of ours.
        """
        content = read(request)
        features = self._classifier.classify(content)
        max_tokens: int | None = getattr(request, "max_completion_tokens", None)
        if max_tokens is None:
            max_tokens = getattr(request, "max_tokens", None)
        return Facts(
            features=features,
            model=request.model,
            team=team,
            key=key,
            user=user if user is not None else request.user,
            tags=dict(tags or {}),
            max_tokens=max_tokens,
            needs=content.needs | needs if needs else content.needs,
            prompt_tokens_bound=content.prompt_tokens_bound,
            endpoint=_ENDPOINTS[type(request)],
        )

    @property
    def judges(self) -> Judges:
        """Of answers, as calibrated with the head."""
        return self._classifier.head.judges

    def observe(self, record: RequestRecord) -> None:
        """Learn from a settled request what answers take."""
        self.forecasts.observe(record)

    def estimates(self, facts: Facts) -> dict[str, Estimate]:
        """What each backend's answer will probably take."""
        return self.forecasts.estimates(facts, self._registry.cards())

    async def decide(
        self,
        facts: Facts,
        *,
        policy_name: str | None = None,
        budget: BudgetState | None = None,
        now: datetime | None = None,
        draw: float = 0.0,
        luck: float | None = None,
        asked: Asked | None = None,
        only: Only = EVERYTHING,
        dry: bool = False,
    ) -> Routed:
        """Run the policy on one request.

        Args:
            luck: in [0, 1), new for each request: decides whether chance takes another backend
                than the policy, as `[routing] explore` wants; None: never.
            policy_name: out of x-headgate-policy; None: what the model says, else the configured.
            only: what the caller's key is restricted to.
            dry: leave no trace: the decision is looked at, not followed.
            asked: the request's body, for backends that are asked to count its tokens because the
                upper bound does not fit; it also remembers the decision.

        Raises:
            ModelNotFound, InvalidRequest, Unavailable: the model or the policy does not exist,
                or the policy has never been valid. Everything else is in `refusal`.
            Forbidden: the key may not ask for that model or policy.
        """
        budget, now = budget or BudgetState(), now or datetime.now(UTC)
        resolved, loaded, effect = self._governing(facts.model, policy_name, budget, only)
        if loaded is not self._noted and not dry:
            self._note(loaded)
        cards = self._registry.cards()
        if asked is not None and loaded.compiled.uses_warmth and facts.features.turns > 1:
            facts = await self._with_warmth(facts, asked)
        paced = loaded.compiled.uses_estimates
        estimated = paced or facts.warm is not None
        if paced:
            spent_usd, requests = self.forecasts.day(loaded.name, now)
            budget = replace(budget, day_spent_usd=spent_usd, day_requests=requests)
        if estimated:
            facts = replace(facts, estimates=self.forecasts.estimates(facts, cards))
        exploring = luck is not None and luck < self._explore
        inputs = (facts, loaded, cards, budget, only, now.timestamp() // 60, draw, effect)
        if asked is not None and not estimated and not exploring:
            known: Routed | None = asked.recall("routed", inputs)
            if known is not None:
                return known

        def decided(changed: Facts) -> Decision:
            return decide_policy(loaded.compiled, changed, cards, budget, now, draw)

        facts = replace(
            facts, allowed=resolved.allowed, pinned=effect.backend, barred=effect.drained
        )
        decision = decided(facts)
        uncounted = too_small(decision)
        if uncounted:
            uncounted = _perhaps_fitting(uncounted, facts, cards)
        if asked is not None and uncounted:
            facts, decision = await self._counted(facts, decision, decided, uncounted, asked.raw)
        looked, why_not = None, None
        if loaded.compiled.uses_quality and not exploring and decision.rule != PINNED:
            asking = None if dry else asked
            looked, why_not = await self._look_again(
                facts, loaded, decision, cards, decided, asking
            )
            if looked is not None:
                facts = replace(facts, features=looked.features)
                decision = decided(facts)
        refusal: GatewayError | None = None
        if not decision.candidates:
            refusal = refusal_of(facts, decision, loaded, cards, decided)
        decision, explored = self._left_open(decision, effect, luck)
        if paced and decision.candidates and not dry:
            expected = facts.estimates[decision.candidates[0]].cost_nano_usd or 0
            self.forecasts.spend(loaded.name, now, expected)
        routed = Routed(
            decision=decision,
            loaded_policy=loaded,
            facts=facts,
            decided_on=decided_on(facts, cards, budget, explored, looked),
            refusal=refusal,
            encoding=None if looked is None else looked.encoding,
            second_look=self._told(loaded, looked, why_not) if self._second else None,
        )
        # a backend that could not count now may later; chance and forecasts change
        if asked is None or uncounted or estimated or explored:
            return routed
        return _remembered(asked, inputs, routed, looked)

    def _governing(
        self, model: str, policy_name: str | None, budget: BudgetState, only: Only
    ) -> tuple[Resolved, LoadedPolicy, Effect]:
        """What the model stands for, the policy that decides, and what operators changed."""
        resolved = self.names.resolve(model)
        if only is not EVERYTHING:
            resolved = self.names.restricted(resolved, model, policy_name, only)
        effect = self._effect()
        loaded = self._policy(resolved, policy_name, effect)
        if budget.policy is not None:
            loaded = self._downgraded(budget.policy, loaded)
        return resolved, loaded, effect

    def _note(self, loaded: LoadedPolicy) -> None:
        """Tell once of each version that decides."""
        self._noted = loaded
        if (loaded.name, loaded.sha256) in self._decided:
            return
        self._decided.add((loaded.name, loaded.sha256))
        if self._decides is not None:
            self._decides(loaded)

    def _left_open(
        self, decision: Decision, effect: Effect, luck: float | None
    ) -> tuple[Decision, str | None]:
        """With the caches that operators left on; and what chance took instead, if it did."""
        if effect.cache is not None:
            decision = replace(decision, cache=strictest(effect.cache, decision.cache))
        if not self._explore or not decision.candidates or decision.rule == PINNED:
            return decision, None  # a pin leaves nothing to chance
        return left_to_chance(decision, luck, self._explore)

    async def _look_again(
        self,
        facts: Facts,
        loaded: LoadedPolicy,
        decision: Decision,
        cards: Mapping[str, BackendCard],
        decided: Callable[[Facts], Decision],
        asked: Asked | None,
    ) -> tuple[Looked | None, str | None]:
        """What the encoder says of a request, or why it was not asked; without a body it is not."""
        if self._second is None:
            return None, None
        why_not = self._second.why_not(
            loaded.policy.second_look,
            facts.features,
            decision,
            lambda name: self.forecasts.estimate(facts, cards[name]).cost_nano_usd,
            lambda features: decided(replace(facts, features=features)),
        )
        if why_not is not None or asked is None:
            return None, why_not
        return await self._second.look(read(asked.request).text, facts.features), None

    async def _with_warmth(self, facts: Facts, asked: Asked) -> Facts:
        if self._conversations is None:
            return facts
        warm = await self._conversations.warm(asked.request, facts.team)
        return facts if warm is None else replace(facts, warm=warm)

    async def explain(
        self,
        facts: Facts,
        *,
        policy_name: str | None = None,
        budget: BudgetState | None = None,
        now: datetime | None = None,
        draw: float = 0.0,
        asked: Asked | None = None,
        only: Only = EVERYTHING,
        text: str = "",
    ) -> dict[str, Any]:
        """The decision in full, for /route/explain; nothing is generated, spent or noted.

        Args:
            text: what the classifier read; its words are weighed.
        """
        now = now or datetime.now(UTC)
        routed = await self.decide(
            facts,
            policy_name=policy_name,
            budget=budget,
            now=now,
            draw=draw,
            asked=asked,
            only=only,
            dry=True,
        )
        story = explanation(routed, self._registry.cards(), budget or BudgetState(), now)
        estimates = self.estimates(routed.facts)
        for candidate in story["candidates"]:
            candidate |= expectation(estimates.get(candidate["backend"]))
        return story | {"moved_by": moved(self._classifier, text)}

    def _policy(self, resolved: Resolved, header: str | None, effect: Effect) -> LoadedPolicy:
        if header and resolved.policy and header != resolved.policy:
            raise InvalidRequest(
                f"model asks for policy {resolved.policy!r}, x-headgate-policy for {header!r}; "
                "send one of them.",
                param="x-headgate-policy",
            )
        name = header or resolved.policy
        if effect.policy is not None and name in (None, effect.policy.name):
            return effect.policy
        try:
            return self._book.get(name)
        except UnknownPolicy:
            message = f"There is no policy {name!r}; there are: {', '.join(self._book.names())}."
            if header:
                raise InvalidRequest(message, param="x-headgate-policy") from None
            raise ModelNotFound(message, param="model") from None
        except PolicyError as error:
            log.warning("policy_invalid", policy=name, problems=str(error))
            raise Unavailable(f"The policy {name!r} is not valid; see /health.") from None

    def _downgraded(self, name: str, otherwise: LoadedPolicy) -> LoadedPolicy:
        """The policy that a budget asks for; one that is gone must not stop requests."""
        try:
            return self._book.get(name)
        except (UnknownPolicy, PolicyError) as error:
            log.error("downgrade_policy_missing", policy=name, error=str(error))
            return otherwise

    async def _counted(
        self,
        facts: Facts,
        decision: Decision,
        decided: Callable[[Facts], Decision],
        names: Sequence[str],
        body: Mapping[str, Any],
    ) -> tuple[Facts, Decision]:
        """Decided again with exact prompt tokens, of those backends that can say."""
        counted: dict[str, int] = {}
        for name in names:
            try:
                tokens = await self._registry.backend(name).count_tokens(body)
            except BackendError as error:
                log.info("token_count_failed", backend=name, error=str(error))
                continue
            if tokens is not None:
                counted[name] = tokens
        if not counted:
            return facts, decision
        facts = replace(facts, prompt_tokens_exact=counted)
        return facts, decided(facts)

    def _told(self, loaded: LoadedPolicy, looked: Looked | None, why_not: str | None) -> str | None:
        """For explanations: what came of a second look, or why there was none."""
        if not loaded.compiled.uses_quality:
            return None
        if looked is not None:
            return looked.result
        return why_not or "it would be looked at again; explaining asks nobody"


def _perhaps_fitting(
    names: Sequence[str], facts: Facts, cards: Mapping[str, BackendCard]
) -> list[str]:
    """Of backends left out by a bound those that may fit after all, if somebody counts."""
    tokens = facts.features.prompt_tokens
    return [name for name in names if tokens <= HOPELESS * (cards[name].context_tokens or 0)]


def strictest(*rules: CacheRule | None) -> CacheRule:
    """The most of the caches that all allow; None: any."""
    order: tuple[CacheRule, ...] = ("off", "exact", "semantic")
    return min((rule for rule in rules if rule is not None), key=order.index, default="semantic")


def _remembered(
    asked: Asked, inputs: tuple[Any, ...], routed: Routed, looked: Looked | None
) -> Routed:
    """Kept for the same body asked again; the encoder's vector is paid for once."""
    if looked is None:
        return asked.remember("routed", inputs, routed)
    if looked.result == "used":
        asked.remember("routed", inputs, replace(routed, encoding=None))
    return routed
