"""What a cascade may cost: with each rung, all that was asked before it, and its judges."""

from collections.abc import Callable, Mapping

from policies.cascade import BACKEND
from policies.model import Accept, Decision

JUDGE_TOKENS = 64
"""Of what a judge backend is told to do."""
Price = Callable[[str, int, int], int]
"""Of a backend's answer, by tokens of prompt and answer: nano-dollars."""


def climbing(decision: Decision, costs: Mapping[str, int], judge: int) -> dict[str, int]:
    """What has been spent, at most, once each backend has answered.

    Args:
        costs: of the backends' answers; those of the decision that are not here are not asked.
        judge: of one look at an answer.
    """
    accept = decision.accept or Accept()
    times = accept.n if accept.judge == "consistency" else 1
    found: dict[str, int] = {}
    below = spent = 0
    for name in decision.rungs:
        if name in costs:
            below, found[name] = spent, spent + costs[name]
            spent += times * costs[name] + judge
    return found | {name: below + cost for name, cost in costs.items() if name not in found}


def judge_backend(decision: Decision) -> str | None:
    """The backend that judges; None: the answers' own tokens do."""
    return None if decision.accept is None else judging_backend(decision.accept)


def judging_backend(accept: Accept) -> str | None:
    """As `judge_backend`."""
    return accept.judge.removeprefix(BACKEND) if accept.judge.startswith(BACKEND) else None


def judge_cost(decision: Decision, price: Price, prompt_tokens: int, answer_tokens: int) -> int:
    """Of one look: the judge reads question, answer and what it is to do, and says a word."""
    name = judge_backend(decision)
    return 0 if name is None else price(name, prompt_tokens + answer_tokens + JUDGE_TOKENS, 1)
