"""README.md's table of clients, which `./run_tests.sh tests/clients --write-client-table` writes, is up to date."""

from __future__ import annotations

import re
from collections import Counter
from importlib.metadata import version

import pytest

from tests.clients.roster import BEGIN, END, README, ROSTER, Client, table


@pytest.fixture(autouse=True)
def _not_while_it_is_written(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--write-client-table", False):
        pytest.skip("the table is being written")


@pytest.mark.parametrize("client", ROSTER, ids=lambda client: client.name)
def test_readme_has_the_pinned_version_and_the_result_of(client: Client, request: pytest.FixtureRequest) -> None:
    """As many tests as are known here at least, and all of them passed."""
    (expected,) = (line for line in table({client.name: "!"}).splitlines() if line.endswith("| ! |"))
    found = re.search(re.escape(expected).replace("!", r"(\d+) of \1 passed"), README.read_text())
    assert found, f"README.md has no row like {expected}. Run ./run_tests.sh tests/clients --write-client-table"
    marks = (item.get_closest_marker("client") for item in request.session.items)
    assert Counter(mark.args[0] for mark in marks if mark)[client.name] <= int(found[1])


def test_readme_has_no_other_rows() -> None:
    written = README.read_text().split(BEGIN)[1].split(END)[0]
    assert written.strip().count("\n") == table({}).count("\n")


@pytest.mark.parametrize("package", ["openai", "mistralai", "langchain-openai", "langchain-mistralai"])
def test_what_is_installed_is_what_is_pinned(package: str) -> None:
    assert version(package) in {client.version for client in ROSTER if client.package == package}
