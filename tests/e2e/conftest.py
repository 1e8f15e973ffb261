"""One running Headgate with the built-in configuration for all tests that only talk to it."""

from collections.abc import Iterator

import pytest

from tests.e2e.serving import Headgate, wait_for


@pytest.fixture(scope="session")
def headgate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Headgate]:
    """`headgate serve` without a config file: the bundled models, both caches."""
    running = Headgate(tmp_path_factory.mktemp("headgate")).start()

    def complete() -> bool:
        return all(backend["ready"] for backend in running.get("/health").json()["backends"])

    wait_for(complete, timeout_s=120, what="every backend's readiness, the encoder's too")
    yield running
    assert running.stop() == 0, running.tail()
