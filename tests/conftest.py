from __future__ import annotations

import signal
from collections.abc import Iterator

import hypothesis
import pytest

from tests.serving import Server

# Whoever runs the tests in the background may have switched Ctrl-C off, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test says how fast something is: machines differ and are busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One server for all tests that leave it as they found it; a fault that they cause shows in the next one."""
    with Server("--demo", HEARTBEAT_SECONDS="0.2") as running:
        yield running
        at_work = ("requests", "chunks_running", "live_sessions")
        running.wait_until(lambda health: not any(health[name] for name in at_work))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
