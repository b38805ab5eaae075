"""The clients that are driven, at which versions, and with what: the rows of the table in README.md."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
README = ROOT / "README.md"
NODE = Path(__file__).parent / "node"
BEGIN, END = "<!-- client table: begin -->", "<!-- client table: end -->"

_CHAT = "chat with audio, its stream, tools, JSON schema"
_MISTRAL = "transcription, segments, words to expect, stream, live, chat with audio, its stream, models, errors"


def python_pins() -> dict[str, str]:
    files = (ROOT / "requirements-dev.txt", ROOT / "requirements-litellm.txt")
    return dict(re.findall(r"^([\w-]+)==(\S+)$", "\n".join(file.read_text() for file in files), re.MULTILINE))


def node_pins() -> dict[str, str]:
    return json.loads((NODE / "package.json").read_text())["dependencies"]


@dataclass(frozen=True)
class Client:
    name: str
    package: str  # as pip or npm call it; empty: not from either
    driven: str
    version_elsewhere: str = ""

    @property
    def version(self) -> str:
        pins = python_pins() | {f"npm:{name}": version for name, version in node_pins().items()}
        version = pins[self.package] if self.package else self.version_elsewhere
        return f"{version}, ai {pins['npm:ai']}" if self.package.startswith("npm:@ai-sdk/") else version


ROSTER = (
    Client(
        "openai (Python)", "openai",
        "transcription and translation in every format, times of words, stream, logprobs, live (also its beta), client "
        "secrets, chat with audio, its stream, models, errors",
    ),
    Client(
        "openai (Node)", "npm:openai",
        f"transcription (json, verbose_json, vtt), stream, live, {_CHAT}, models, errors",
    ),
    Client("mistralai (Python)", "mistralai", _MISTRAL),
    Client("@mistralai/mistralai (Node)", "npm:@mistralai/mistralai", _MISTRAL),
    Client("AI SDK with @ai-sdk/openai", "npm:@ai-sdk/openai", f"transcription with segments, live, {_CHAT}, errors"),
    Client(
        "AI SDK with @ai-sdk/mistral", "npm:@ai-sdk/mistral",
        "transcription with segments, live, chat (it sends no audio), tools, JSON schema, errors",
    ),
    Client("AI SDK with @ai-sdk/openai-compatible", "npm:@ai-sdk/openai-compatible", f"{_CHAT}, errors"),
    Client(
        "LiteLLM", "litellm",
        "transcription (json, verbose_json) by `openai/`, `hosted_vllm/` and `mistral/`, async, chat with audio, "
        "its stream, JSON schema, models, errors",
    ),
    Client("langchain-openai", "langchain-openai", f"{_CHAT}, async, errors"),
    Client("langchain-mistralai", "langchain-mistralai", f"{_CHAT}, errors"),
    Client("Lotti", "", "its own requests, byte for byte", "source of August 2026"),
    Client("curl", "", "transcription, subtitles, stream", "any"),
)  # fmt: skip


def row(client: Client, result: str) -> str:
    return f"| {client.name} | {client.version} | {client.driven} | {result} |"


def table(results: dict[str, str]) -> str:
    """The Markdown table; `results` by the names of the clients."""
    rows = [row(client, results.get(client.name, "not driven")) for client in ROSTER]
    return "\n".join(["| client | version | what was driven | result |", "|---|---|---|---|", *rows])
