"""Taking a charge back: what was booked stays, a negative row stands beside it.

A correction is booked now, so it belongs to the open period, and its `reverses_seq` names what it
corrects. It never precedes that, whatever the clock says. Budgets count it where they counted the
request.
"""

from typing import TYPE_CHECKING

from msgspec.structs import replace

from gateway.ledger import state
from gateway.ledger.audit import Act, record
from gateway.ledger.budget_store import NOT_CHARGED
from gateway.ledger.database import writing
from gateway.ledger.late_spending import Correction, by_backend
from gateway.ledger.money import MAX_NANO_USD, usd_text
from gateway.ledger.pricing import reverse
from gateway.ledger.records import FIRST_CORRECTION, ChargeRecord, Settlement
from gateway.ledger.repository import Repository, find_settlement

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class UnknownCharge(LookupError):
    """No such request, or it has no such charge."""


async def correct(
    engine: "AsyncEngine",
    request_id: str,
    seq: int,
    *,
    cost_nano_usd: int | None = None,
    now: float,
    chained: bool,
    by: str = "",
) -> tuple[ChargeRecord, ...]:
    """Reverse a charge and, if a cost is given, book it again at that cost.

    Args:
        now: unix seconds.
        chained: the audit chain is on.
        by: who does it, for the audit log.

    Returns:
        The new charges as they are booked.

    Raises:
        UnknownCharge: nothing to correct.
        ValueError: it is a reversal, is reversed already, or the cost is none.
    """
    if cost_nano_usd is not None and not 0 <= cost_nano_usd <= MAX_NANO_USD:
        raise ValueError(f"cost ${usd_text(cost_nano_usd)}; allowed: 0 or more")
    repository = Repository(engine, chained=chained)
    async with writing(engine) as connection:
        await state.let_no_month_close(connection)
        found = await find_settlement(connection, request_id, lock=True)
        if found is None:
            raise UnknownCharge(f"no request {request_id!r} in the ledger")
        request_id = found.request.request_id
        wrong = _wrong_charge(found, seq)
        budgets = await Correction.begin(connection, found.request, now=now)
        at = max(now, wrong.at)
        next_seq = max(FIRST_CORRECTION, found.charges[-1].seq + 1)
        booked = [reverse(wrong, seq=next_seq, at=at)]
        if cost_nano_usd is not None:
            right = replace(wrong, seq=next_seq + 1, at=at, reverses_seq=seq)
            booked.append(replace(right, cost_nano_usd=cost_nano_usd))
        await repository.write_on(
            connection, [Settlement(request=found.request, charges=tuple(booked))]
        )
        if wrong.kind not in NOT_CHARGED:
            await budgets.apply(connection, by_backend(booked))
        cost_usd = None if cost_nano_usd is None else usd_text(cost_nano_usd)
        details = {"seq": seq, "cost_usd": cost_usd}
        act = Act(actor=by, action="charges.correct", target=request_id, details=details)
        await record(connection, act)
        after = await find_settlement(connection, request_id)
    assert after is not None, "it was there a moment ago"
    return tuple(charge for charge in after.charges if charge.seq >= next_seq)


def _wrong_charge(found: Settlement, seq: int) -> ChargeRecord:
    request_id = found.request.request_id
    of_that_seq = [charge for charge in found.charges if charge.seq == seq]
    if not of_that_seq:
        known = ", ".join(str(charge.seq) for charge in found.charges) or "none"
        raise UnknownCharge(f"request {request_id!r} has no charge {seq}; it has {known}")
    if of_that_seq[0].kind == "reversal":
        raise ValueError(f"charge {seq} of {request_id!r} is a reversal; book the charge again")
    if any(c.kind == "reversal" and c.reverses_seq == seq for c in found.charges):
        raise ValueError(f"charge {seq} of {request_id!r} is reversed already")
    return of_that_seq[0]
