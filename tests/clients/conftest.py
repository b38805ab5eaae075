"""Fixtures for the clients, and `--write-client-table`, which puts what the tests found into README.md."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from tests.clients.roster import BEGIN, END, README, table
from tests.speech import clip, wav


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip `voice_en-us` as WAV, which every client can send."""
    path = tmp_path_factory.mktemp("recording") / "recording.wav"
    path.write_bytes(wav(clip("voice_en-us").samples()))
    return path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-client-table", action="store_true", help="write the results into README.md's table")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--write-client-table", False):
        if config.getoption("numprocesses"):
            raise pytest.UsageError("--write-client-table counts in one process: add --numprocesses 0")
        config.pluginmanager.register(TableWriter())


class TableWriter:
    """Counts the tests of each client as they end."""

    def __init__(self) -> None:
        self._client_of: dict[str, str] = {}
        self._passed: dict[str, dict[str, bool]] = defaultdict(dict)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if mark := item.get_closest_marker("client"):
                self._client_of[item.nodeid] = mark.args[0]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Once for the set-up, the call and the tear-down of each test; all of them must pass."""
        if client := self._client_of.get(report.nodeid):
            tests = self._passed[client]
            tests[report.nodeid] = tests.get(report.nodeid, True) and report.passed

    def pytest_sessionfinish(self) -> None:
        results = {name: f"{sum(tests.values())} of {len(tests)} passed" for name, tests in self._passed.items()}
        before, rest = README.read_text().split(BEGIN)
        after = rest.split(END)[1]
        README.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}")
