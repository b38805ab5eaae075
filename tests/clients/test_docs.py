"""Every snippet of docs/clients.md and docs/realtime.md runs as it stands and prints the words of `recording.wav`."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.clients.outside import NODE, litellm_command, node_command, output
from tests.clients.roster import ROOT, ROSTER
from tests.serving import Server
from tests.speech import assert_heard, clip

ADDRESS = "http://127.0.0.1:11344"
SOCKET = "ws://127.0.0.1:11344"
CLIENTS = [client.name for client in ROSTER]


def sections(page: str) -> dict[str, str]:
    return dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (ROOT / page).read_text(), re.DOTALL | re.M))


SNIPPETS = [
    pytest.param(client, kind, code, id=f"{client} {page}", marks=[pytest.mark.client(client)] * (client in CLIENTS))
    for page in ("docs/clients.md", "docs/realtime.md")
    for client, section in sections(page).items()
    for kind, code in re.findall(r"^```(\w+)\n(.*?)^```", section, re.DOTALL | re.M)
]


@pytest.fixture
def folder(tmp_path: Path, recording: Path) -> Path:
    """A folder with `recording.wav` in it, where Node finds its packages."""
    shutil.copy(recording, tmp_path / "recording.wav")
    (tmp_path / "node_modules").symlink_to(NODE / "node_modules")
    return tmp_path


def command(client: str, kind: str, script: Path) -> list[str | Path]:
    if kind == "bash":
        return ["bash", "-e", script]
    if kind == "js":
        return [*node_command(), script]
    return [*(litellm_command() if client == "LiteLLM" else [sys.executable]), script]


@pytest.mark.parametrize(("client", "kind", "code"), SNIPPETS)
def test_a_snippet_of_the_documentation_prints_what_was_said(
    server: Server, folder: Path, client: str, kind: str, code: str
) -> None:
    script = folder / ("snippet.mjs" if kind == "js" else "snippet")
    script.write_text(code.replace(ADDRESS, server.url).replace(SOCKET, server.url.replace("http", "ws")))
    printed = output(command(client, kind, script), folder)
    if client == "curl":
        assert re.search(r"00:00:0\d,\d{3} --> ", printed)
        assert '"type":"transcript.text.delta"' in printed
    texts = re.findall(r'"text":"(.*?)"', printed) if client == "curl" else [printed]
    assert texts
    for text in texts:
        assert_heard(clip("voice_en-us").words, text)


def test_every_client_has_its_section() -> None:
    assert list(sections("docs/clients.md")) == CLIENTS
