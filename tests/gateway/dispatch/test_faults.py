"""Faults of a real server under each policy: nothing lost without an error, nothing paid twice."""

from pathlib import Path

import pytest

from tests.gateway.dispatch.fault_table import FAULTS, POLICIES, Row, recovery, table

BROKEN = "200, in mid-stream backend_error"
ALONE = {
    "refuse": "503 service_unavailable, Retry-After 1",
    "hang": "504 deadline_exceeded",
    "slow": "200",
    "500": "502 backend_error",
    "429": "503 service_unavailable, Retry-After 1",
    "429 long": "503 service_unavailable, Retry-After 60",
    "garbage": "502 backend_error",
}
"""What a client sees of one failing backend, streamed or not."""


def expected(policy: str, fault: str, stream: bool) -> str:
    """What the client should see."""
    if fault == "none":
        return "200"
    if fault == "cut" and stream:
        return "200, begun again" if policy == "restart" else BROKEN
    if policy in ("alone", "retry"):
        return "502 backend_error" if fault == "cut" else ALONE[fault]
    return "200"


def check(row: Row) -> None:
    """What must hold of every request, whatever failed."""
    about = (row.fault, row.policy, row.stream)
    assert row.client == expected(row.policy, row.fault, row.stream), about
    assert row.rows == 1, about
    assert row.cost_adds_up, about
    whole = row.client in ("200", "200, begun again")
    assert row.text_whole == whole, about
    answers = [charge for charge in row.charges if charge.startswith("answer ")]
    assert len(answers) <= 1, f"paid twice: {about}"
    if whole:
        assert answers == [f"answer {row.answered_by} 7+3"], about
    calls = 2 if row.policy == "retry" else 1
    assert all(count <= calls for count in row.calls.values()), about
    hedges = [charge for charge in row.charges if charge.startswith("hedge ")]
    assert len(hedges) == (row.policy == "hedge" and row.fault in ("slow", "hang")), about
    if row.fault == "cut" and row.stream:
        paid = "retry a 5+2" if row.policy == "restart" else "answer a 5+2"
        assert row.charges[0] == paid, "what the client had seen is paid"
    if row.fault in ("500", "429", "429 long", "refuse"):
        assert all(" a " not in charge for charge in row.charges), "a refusal costs nothing"


@pytest.mark.parametrize("policy", POLICIES)
async def test_every_fault_ends_in_an_answer_or_an_error_and_is_paid_once(
    tmp_path: Path, policy: str
) -> None:
    """The table of docs/failures.md: client, calls and charges of each fault."""
    rows = await table(tmp_path, policy, timeout_s=1.0)  # a busy machine is not a fault
    assert len(rows) == 2 * (1 + len(FAULTS))
    for row in rows:
        check(row)


async def test_backend_that_is_back_is_used_within_the_first_pause(tmp_path: Path) -> None:
    """Recovery takes no longer than the breaker's first pause, whatever the failure was."""
    assert max((await recovery(tmp_path)).values()) < 2.5
