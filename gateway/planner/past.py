"""The ledger's own traffic as a workload, and its charges as measured step times."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from gateway.ledger.batch_levels import Work as Charged
from gateway.ledger.batch_levels import mean_batches
from gateway.ledger.tables import charges, requests
from gateway.planner.calibrate import precision_of
from gateway.planner.errors import PlanError
from gateway.planner.shapes import shape_of
from gateway.planner.steps import Measured, Work
from gateway.planner.workload import Workload, checked
from gateway.settings import BackendSettings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_MOST_ROWS = 200_000
_MOST_LENGTHS = 4096
_ROWS = 48
"""Of measurements, of each backend."""
_HOUR_US = 3_600_000_000


async def traffic(
    connection: "AsyncConnection", since_us: int, until_us: int, backend: str | None = None
) -> Workload:
    """Rate, gaps, lengths and prefix share of what backends answered; the rate of the fullest hour,
    or, where there is less than an hour, of what there is.

    Raises:
        PlanError: fewer than two requests were answered.
    """
    r = requests.c
    wanted = (
        select(r.started_us, r.prompt_tokens, r.cached_prompt_tokens, r.completion_tokens)
        .where(r.started_us >= since_us, r.started_us < until_us)
        .where(r.completion_tokens > 0, r.prompt_tokens > 0)
        .where(r.cache.not_in(("exact", "semantic")))
        .order_by(r.started_us.desc())
        .limit(_MOST_ROWS)
    )
    if backend is not None:
        wanted = wanted.where(r.backend == backend)
    rows = (await connection.execute(wanted)).all()[::-1]
    if len(rows) < 2:
        where = f" by {backend!r}" if backend else ""
        raise PlanError(
            f"the ledger has {len(rows)} requests answered{where} in that period; give an earlier "
            "--since, or --rate with lengths"
        )
    hours = Counter(row.started_us // _HOUR_US for row in rows)
    fullest, count = max(hours.items(), key=lambda item: item[1])
    in_it = [row.started_us for row in rows if row.started_us // _HOUR_US == fullest]
    span_s = max((rows[-1].started_us - rows[0].started_us) / 1e6, 1.0)
    rate = count / min(3600.0, span_s)
    newest = "the newest " if len(rows) == _MOST_ROWS else ""
    when = "the rate of the fullest hour" if span_s >= 3600 else f"all within {span_s:,.0f} s"
    every = -(-len(rows) // _MOST_LENGTHS)
    prompt = sum(row.prompt_tokens for row in rows)
    cached = sum(row.cached_prompt_tokens for row in rows)
    return checked(
        Workload(
            requests_per_s=rate,
            lengths=tuple((row.prompt_tokens, row.completion_tokens) for row in rows[::every]),
            prefix_share=min(0.99, cached / prompt),
            source=f"the ledger: {newest}{len(rows):,} requests, {when}",
            gaps_s=_gaps_s(in_it),
        )
    )


def _gaps_s(moments_us: Sequence[int]) -> tuple[float, ...]:
    """Times between arrivals; none if all came at once."""
    gaps = tuple((after - before) / 1e6 for before, after in pairwise(moments_us))
    return gaps if sum(gaps) > 0 else ()


async def charged_work(
    connection: "AsyncConnection",
    since_us: int,
    until_us: int,
    backends: Sequence[BackendSettings],
) -> list[Measured]:
    """What our own engines' requests were charged, as work and the time it took.

    A charge's share of a step's fixed part is one over those who shared it, so its steps are
    divided by the batch that it was served in.

    Raises:
        PlanError: no engine of ours answered anything in the period.
    """
    engines = {one.name: one for one in backends if one.kind == "engine"}
    c = charges.c
    wanted = (
        select(
            c.backend,
            requests.c.started_us,
            c.at_us,
            c.prompt_tokens,
            c.cached_prompt_tokens,
            c.completion_tokens,
            c.prefill_ns,
            c.decode_ns,
        )
        .join_from(charges, requests, requests.c.request_id == c.request_id)
        .where(c.at_us >= since_us, c.at_us < until_us, c.kind.in_(("answer", "rung", "shadow")))
        .where(c.backend.in_(list(engines)), c.prompt_tokens > 0, c.completion_tokens > 1)
        .order_by(c.at_us)
        .limit(_MOST_ROWS)
    )
    rows = (await connection.execute(wanted)).all()
    if not rows:
        raise PlanError(
            "the ledger has no charges of our own engines in that period; give an earlier --since, "
            "or a file of `headgate bench`"
        )
    batches = mean_batches(
        [
            Charged(
                group=(),
                backend=row.backend,
                machine=None,
                began_us=row.started_us,
                ended_us=max(row.at_us, row.started_us + 1),
                prompt_tokens=0,
                completion_tokens=0,
                cost=0,
            )
            for row in rows
        ]
    )
    found: list[Measured] = []
    for name, engine in engines.items():
        own = [(row, batch) for row, batch in zip(rows, batches, strict=True)
               if row.backend == name]  # fmt: skip
        if not own:
            continue
        bundled = engine.model.startswith("bundled:")
        shape = shape_of(engine.model)
        precision = precision_of(engine.quantization or ("int8" if bundled else "bf16"))
        parts = [part for row, batch in own for part in _parts(row, batch)]
        for work, seconds in _sums(parts[0::2]) + _sums(parts[1::2]):
            if seconds > 0:
                found.append(Measured(shape=shape, precision=precision, work=work, seconds=seconds))
    return found


def _parts(row: Any, batch: float) -> tuple[tuple[Work, float], tuple[Work, float]]:
    """Its prompt and its answer."""
    prompt, cached, made = row.prompt_tokens, row.cached_prompt_tokens, row.completion_tokens
    steps = made - 1
    prefill = Work(
        steps=1 / batch,
        prefill_tokens=prompt - cached,
        prefill_attended=(prompt**2 - cached**2) / 2,
    )
    decode = Work(
        steps=steps / batch,
        decode_tokens=steps,
        decode_attended=steps * (prompt + made / 2),
        prompts=1,
    )
    return (prefill, row.prefill_ns / 1e9), (decode, row.decode_ns / 1e9)


def _sums(parts: list[tuple[Work, float]]) -> list[tuple[Work, float]]:
    """Sums of neighbours, so that at most so many are left."""
    size = -(-len(parts) // _ROWS)
    groups = [parts[at : at + size] for at in range(0, len(parts), size)]
    return [
        (
            Work(*(sum(values) for values in zip(*(work for work, _ in group), strict=True))),
            sum(seconds for _, seconds in group),
        )
        for group in groups
    ]
