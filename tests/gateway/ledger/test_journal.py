"""What was appended survives kill -9, exactly once; what is broken is kept aside."""

import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger import journal as journals
from gateway.ledger.journal import Journal
from gateway.ledger.ledger import Ledger
from gateway.ledger.tables import charges, requests
from gateway.settings import Settings
from tests.gateway.ledger.samples import settlement

_WORKER = """
import asyncio, sys, msgspec
from gateway.ledger.database import open_engine
from gateway.ledger.ledger import Ledger
from gateway.settings import BUILT_IN
from tests.gateway.ledger.samples import settlement

async def main(url, state, worker):
    ledger = Ledger(msgspec.structs.replace(BUILT_IN, state_dir=state), open_engine(url))
    await ledger.start()
    number = 0
    while True:
        name = f"{worker}-{number}"
        ledger.settle(settlement(name))
        await ledger.journalled()
        print("done", name, flush=True)  # the acknowledgement: the answer's last byte
        number += 1
        if number % 20 == 0:
            await asyncio.sleep(0.001)

asyncio.run(main(*sys.argv[1:]))
"""


def _segments(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{journals.SUFFIX}"))


def _settle_and_die(url: str, state_dir: str, worker: str) -> set[str]:
    """Run a process that settles, kill it in the middle; what it had acknowledged."""
    command = [sys.executable, "-c", _WORKER, url, state_dir, worker]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(1600)]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.readlines()
    whole = [line.decode().split() for line in lines if line.endswith(b"\n")]
    return {words[1] for words in whole if words[0] == "done"}


async def test_every_acknowledged_settlement_survives_kill_9(
    database_url: str, engine: AsyncEngine, settings: Settings
) -> None:
    """Two processes are killed while they settle; a third finds every row, each exactly once."""
    acknowledged: set[str] = set()
    for worker in ("a", "b"):
        acknowledged |= _settle_and_die(database_url, settings.state_dir, worker)
    assert len(acknowledged) >= 3000

    ledger = Ledger(settings, engine)
    await ledger.start()
    assert await ledger.flush(30)
    await ledger.aclose()
    async with engine.connect() as connection:
        rows = list((await connection.execute(select(requests.c.request_id))).scalars())
        booked = list((await connection.execute(select(charges.c.request_id))).scalars())
    assert acknowledged <= set(rows)
    assert len(rows) == len(set(rows))
    assert sorted(rows) == sorted(booked)
    assert len(set(rows) - acknowledged) <= 2, "at most the one that each was about to acknowledge"
    assert _segments(Path(settings.state_dir) / "journal") == []


def test_torn_last_line_is_skipped(tmp_path: Path) -> None:
    """A writer that died in the middle of a line leaves all lines before it readable."""
    journal = Journal(tmp_path)
    for index in range(3):
        journal.append(b'{"n": %d}' % index)
    journal.close()
    (segment,) = _segments(tmp_path)
    whole = segment.read_bytes()
    for cut in (1, 5, len(whole) // 3 - 1):
        segment.write_bytes(whole[:-cut])
        assert list(journals.read(segment)) == [b'{"n": 0}', b'{"n": 1}']
    assert list(tmp_path.glob("*.bad")) == []


def test_broken_middle_line_is_kept_aside(tmp_path: Path) -> None:
    """A line whose checksum fails goes to a .bad file, once; the lines around it are read."""
    journal = Journal(tmp_path)
    for index in range(3):
        journal.append(b'{"n": %d}' % index)
    journal.close()
    (segment,) = _segments(tmp_path)
    broken = segment.read_bytes().replace(b'{"n": 1}', b'{"n": 7}')
    segment.write_bytes(broken)
    for _ in range(2):
        assert list(journals.read(segment)) == [b'{"n": 0}', b'{"n": 2}']
    (bad,) = tmp_path.glob("*.bad")
    assert bad.read_bytes().count(b"\n") == 1
    assert b'{"n": 7}' in bad.read_bytes()
    assert bad.stat().st_mode & 0o777 == 0o600, "what it says is as private as the journal"


def test_living_writer_s_segments_are_not_taken(tmp_path: Path) -> None:
    """Only segments whose lock is free are taken over, and only by one."""
    journal = Journal(tmp_path)
    journal.append(b"{}")
    assert list(journals.take_over(tmp_path)) == []
    journal.close()
    taken = list(journals.take_over(tmp_path))
    assert len(taken) == 1
    assert list(journals.take_over(tmp_path)) == [], "somebody has it"
    taken[0].release()
    (again,) = journals.take_over(tmp_path)
    again.remove()
    assert _segments(tmp_path) == []


def test_segments_go_when_their_rows_are_committed(tmp_path: Path) -> None:
    """Full segments are closed, and removed as soon as the last of their rows is committed."""
    journal = Journal(tmp_path, segment_bytes=200)
    held = [journal.append(b"x" * 50) for _ in range(12)]
    assert len(_segments(tmp_path)) == 4
    for segment in held[:9]:
        assert segment is not None
        journal.committed(segment, 1)
    assert len(_segments(tmp_path)) == 1
    for segment in held[9:]:
        assert segment is not None
        journal.committed(segment, 1)
    journal.close()
    assert _segments(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_payloads_of_any_size_read_back(tmp_path: Path, size: int) -> None:
    """Also an empty one and one larger than a page."""
    journal = Journal(tmp_path)
    journal.append(b"y" * size)
    journal.close()
    (segment,) = _segments(tmp_path)
    assert list(journals.read(segment)) == [b"y" * size]


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    payloads=st.lists(st.binary(max_size=60).map(lambda b: b.replace(b"\n", b"")), max_size=8),
    damage=st.tuples(st.floats(0, 1), st.integers(1, 255)),
)
def test_reading_a_damaged_segment_gives_only_true_payloads(
    tmp_path_factory: pytest.TempPathFactory,
    payloads: list[bytes],
    damage: tuple[float, int],
) -> None:
    """One changed byte loses at most the lines it touches and never invents one."""
    folder = tmp_path_factory.mktemp("journal")
    file = folder / "x.journal"
    whole = b"".join(b"%08x %b\n" % (zlib.crc32(p), p) for p in payloads)
    if whole:
        at = min(int(damage[0] * len(whole)), len(whole) - 1)
        whole = whole[:at] + bytes([whole[at] ^ damage[1]]) + whole[at + 1 :]
    file.write_bytes(whole)
    found = list(journals.read(file))
    assert len(found) >= len(payloads) - 2
    left = list(payloads)
    for payload in found:
        assert payload in left
        left = left[left.index(payload) + 1 :]


def test_settlements_decode_to_themselves() -> None:
    """The journal's JSON loses nothing of a settlement."""
    one = settlement("r1")
    assert msgspec.json.decode(msgspec.json.encode(one), type=type(one)) == one
