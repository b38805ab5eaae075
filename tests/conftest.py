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


@pytest.fixture(scope="session")
def unusual_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that does not look for speech, finds times with the demo aligner and writes some words in one way."""
    replacements = tmp_path_factory.mktemp("settings") / "replacements.csv"
    replacements.write_text("papa kilo,PK-2\nwindow,Fenster\n")
    settings = {"VOXTRAL_VAD": "off", "VOXTRAL_ALIGNER": "demo_aligner", "VOXTRAL_REPLACEMENTS": str(replacements)}
    with Server("--demo", **settings) as running:
        yield running


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
