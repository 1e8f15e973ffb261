"""Log lines: together where they come together, never lost, never mixed up."""

import asyncio
import io
import json
import subprocess
import sys
import threading
from datetime import UTC, datetime

from gateway.observability import LineLogger


class Stream(io.BytesIO):
    """Counts writes."""

    writes = 0

    def write(self, data: object) -> int:
        self.writes += 1
        return super().write(data)  # type: ignore[arg-type]


async def test_lines_of_one_turn_share_a_write() -> None:
    """Events of one turn of the loop go out together, in order, before the next turn ends."""
    stream = Stream()
    logger = LineLogger(stream)
    for number in range(3):
        logger.info(b"%d" % number)
    assert stream.writes == 0
    await asyncio.sleep(0)
    assert (stream.writes, stream.getvalue()) == (1, b"0\n1\n2\n")
    logger.info(b"3")
    await asyncio.sleep(0)
    assert stream.getvalue() == b"0\n1\n2\n3\n"


def test_line_outside_a_loop_is_written_at_once() -> None:
    """There is no later there."""
    stream = Stream()
    LineLogger(stream).info(b"now")
    assert stream.getvalue() == b"now\n"


def test_no_line_of_many_threads_is_lost_or_torn() -> None:
    """Threads that log at the same time all get their whole lines out."""
    stream = Stream()
    logger = LineLogger(stream)

    def work(name: int) -> None:
        for number in range(500):
            logger.info(b"%d-%d" % (name, number))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = stream.getvalue().decode().split()
    assert sorted(lines) == sorted(f"{name}-{n}" for name in range(4) for n in range(500))


def test_last_words_are_written_when_the_loop_stops() -> None:
    """An event logged in the loop's last turn still reaches the log."""
    code = (
        "import asyncio, structlog\n"
        "from gateway.observability import configure_logging\n"
        "configure_logging()\n"
        "async def main():\n"
        "    structlog.get_logger().info('goodbye')\n"
        "    asyncio.get_running_loop().stop()\n"
        "    await asyncio.sleep(1)\n"
        "try:\n"
        "    asyncio.run(main())\n"
        "except RuntimeError:\n"
        "    pass\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert b'"event":"goodbye"' in ended.stderr


def test_json_line_tells_event_level_time_and_exception() -> None:
    """A line holds what a log pipeline filters by, and the traceback of what went wrong."""
    code = (
        "import structlog\n"
        "from gateway.observability import configure_logging\n"
        "configure_logging()\n"
        "structlog.contextvars.bind_contextvars(request_id='r1')\n"
        "log = structlog.get_logger()\n"
        "log.debug('unseen')\n"
        "log.warning('disk_full', free_bytes=7)\n"
        "try:\n"
        "    1 / 0\n"
        "except ZeroDivisionError:\n"
        "    log.exception('sum_failed', path=__import__('pathlib').Path('/x'))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    warned, failed = [json.loads(line) for line in ended.stderr.splitlines()]
    at = datetime.fromisoformat(warned.pop("at"))
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    assert warned == {
        "event": "disk_full",
        "level": "warning",
        "request_id": "r1",
        "free_bytes": 7,
    }
    assert (failed["level"], failed["path"]) == ("error", "/x")
    assert "ZeroDivisionError: division by zero" in failed["exception"]
