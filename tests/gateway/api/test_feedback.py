"""What decisions leave behind: feedback, recorded facts, explored requests, versions."""

from pathlib import Path

import pytest
from msgspec.structs import replace
from sqlalchemy import text

from gateway.ledger.feedback import opinions
from gateway.routing.policy_history import list_versions, version_text
from tests.gateway.serving import decode, gateway, settings


async def test_feedback_joins_the_request(tmp_path: Path) -> None:
    """Scores of one request are averaged beside what was predicted; the comment is kept."""
    async with gateway(settings(tmp_path)) as served:
        answer = await served.chat("how do tides work?")
        request_id = answer.headers["x-headgate-request-id"]
        for score, named in ((1, request_id), (0.5, decode(answer)["id"])):
            body = {"request_id": named, "score": score, "comment": "nice\u0000"}
            said = await served.client.post("/feedback", json=body)
            assert (said.status_code, decode(said)) == (
                200,
                {"request_id": request_id, "score": float(score)},
            )
        assert await served.parts.ledger.flush()
        async with served.parts.engine.connect() as connection:
            (opinion,) = await opinions(connection)
            comments = (await connection.execute(text("SELECT comment FROM feedback"))).scalars()
            assert list(comments) == ["nice\ufffd"] * 2
        row = (await served.settled(answer)).request
        assert (opinion.backend, opinion.score, opinion.difficulty) == (
            "small",
            0.75,
            row.difficulty,
        )


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"request_id": "nobody", "score": 1}, 404, None),
        ({"request_id": "x", "score": 2}, 400, "score"),
        ({"request_id": "", "score": 1}, 400, "request_id"),
        ({"request_id": "x"}, 400, "score"),
        ({"request_id": "x", "score": 1, "stars": 5}, 400, "stars"),
    ],
)
async def test_bad_feedback_is_refused_by_field(
    tmp_path: Path, body: dict[str, object], status: int, param: str | None
) -> None:
    """An unknown request is 404; a bad body 400 naming the field."""
    async with gateway(settings(tmp_path)) as served:
        answer = await served.client.post("/feedback", json=body)
        assert (answer.status_code, decode(answer)["error"]["param"]) == (status, param)


async def test_the_row_holds_what_the_policy_was_told(tmp_path: Path) -> None:
    """Loads, qualities, limits and the budget stand in the row, also after the database had it."""
    async with gateway(settings(tmp_path)) as served:
        answer = await served.chat("what is 2 + 2?", max_tokens=7, model="small")
        assert await served.parts.ledger.flush()
        told = (await served.settled(answer)).request.decided_on
        assert told is not None
        assert (told.max_tokens, told.allowed, told.budget_left) == (7, ("small",), 1.0)
        assert told.loads == {"small": 0.0, "base": 0.0}
        assert set(told.quality) >= {"nano", "small"}
        assert told.explored is None


async def test_exploring_is_recorded_with_its_probability_and_booked_apart(tmp_path: Path) -> None:
    """About the wished share goes to the other candidate, under the rule `explore`."""
    chosen = settings(tmp_path)
    chosen = replace(chosen, routing=replace(chosen.routing, explore=0.5))
    async with gateway(chosen) as served:
        rows = []
        for index in range(60):
            answer = await served.chat(f"question {index}", headers={"x-headgate-cache": "off"})
            rows.append((await served.settled(answer)).request)
        explored = [row for row in rows if row.rule == "explore"]
        assert 15 <= len(explored) <= 45
        assert {row.backend for row in explored} == {"small", "base"}
        for row in rows:
            assert row.decided_on is not None
            assert row.decided_on.explored == ("default" if row.rule == "explore" else None)
            assert row.probability == (0.75 if row.backend == "small" else 0.25)


async def test_an_objective_decides_by_what_was_learned(tmp_path: Path) -> None:
    """Estimates stand in the row's candidates; latency is known after the first answer."""
    chosen = settings(tmp_path)
    policy = tmp_path / "policies" / "test.toml"
    policy.write_text('[default]\nobjective = { maximise = "quality", mu_latency_s = 0.001 }\n')
    async with gateway(chosen) as served:
        first = await served.chat("one", headers={"x-headgate-cache": "off"})
        assert first.status_code == 200, first.text
        again = await served.chat("two", headers={"x-headgate-cache": "off"})
        row = (await served.settled(again)).request
        known = {c.backend: c.latency_ms for c in row.candidates}
        assert known[(await served.settled(first)).request.backend] is not None
        assert [why for subject, _, why in row.reasons if subject == "objective"]


async def test_versions_that_decided_are_kept_whole(tmp_path: Path) -> None:
    """An edit makes a second version; both can be had back by the beginning of their digest."""
    async with gateway(settings(tmp_path)) as served:
        first = (await served.settled(await served.chat("one"))).request
        policy = tmp_path / "policies" / "test.toml"
        before = policy.read_text()
        policy.write_text(before + "\n# changed\n")
        second = (await served.settled(await served.chat("two"))).request
        await served.parts.history.flush()
        assert await served.parts.ledger.flush()
        async with served.parts.engine.connect() as connection:
            found = await list_versions(connection, "test")
            assert {(v.sha256, v.requests) for v in found} == {
                (first.policy_sha256, 1),
                (second.policy_sha256, 1),
            }
            assert await version_text(connection, "test", first.policy_sha256[:8]) == (
                first.policy_sha256,
                before,
            )
            with pytest.raises(LookupError, match="no version"):
                await version_text(connection, "test", "ffff%")
