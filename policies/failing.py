"""What is wrong with a rule's `retries`, `hedge` and `restart`."""

import math
from collections.abc import Iterator

from policies.model import Route

MOST_RETRIES = 10


def failing_problems(action: Route) -> Iterator[tuple[str, str]]:
    """(key, message) of each."""
    if action.retries is not None and not 0 <= action.retries <= MOST_RETRIES:
        yield "retries", f"{action.retries!r}: 0 to {MOST_RETRIES}"
    hedge = action.hedge
    if hedge is not None:
        if not 0.5 <= hedge.percentile < 1:
            yield "hedge.percentile", f"{hedge.percentile!r}: 0.5 to less than 1, such as 0.95"
        for name in ("max_prompt_tokens", "max_answer_tokens"):
            if getattr(hedge, name) < 1:
                yield f"hedge.{name}", f"{getattr(hedge, name)!r}: at least 1"
        if not (hedge.min_wait_s > 0 and math.isfinite(hedge.min_wait_s)):
            yield "hedge.min_wait_s", f"{hedge.min_wait_s!r}: more than 0"
    if action.deny is not None:
        for beside in ("retries", "hedge", "restart"):
            if getattr(action, beside):
                yield beside, "without effect beside deny; remove it"
