"""The shape of the code, read from its syntax trees: imports go one way, files and functions stay small."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [p for p in ROOT.rglob("*.py") if not {".venv", "tests"} & set(p.relative_to(ROOT).parts)]
# From the top of the flow to its bottom; a module may import from its own layer and from those after it.
LAYERS = (
    ("main",),
    ("api",),
    ("streaming",),
    ("live_sessions",),
    ("live_streaming", "live_utterances"),
    ("live_listening",),
    ("responder", "transcriber"),
    ("decoding",),
    ("chunk_text",),
    ("continuation",),
    ("answer", "store"),
    ("model_manager",),
    ("aligner",),
    ("model_store",),
    ("model_table",),
    ("stream_text",),
    ("engine",),
    ("live_events",),
    ("live",),
    ("chunk_reader",),
    ("subtitles",),
    ("replacements",),
    ("word_times",),
    ("chunking",),
    ("live_flushes", "turns"),
    ("voice_activity",),
    ("pcm",),
    ("audio_processor",),
    ("timeline",),
    ("instructions",),
    ("client_secrets",),
    ("admission", "config", "languages", "logs", "metrics", "progress", "transcript"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def layered() -> list[Path]:
    return [p for p in SOURCES if p.relative_to(ROOT).parts[0].removesuffix(".py") in RANK]


@pytest.mark.parametrize("path", layered(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    own = RANK[path.relative_to(ROOT).parts[0].removesuffix(".py")]
    for name in imported(ast.parse(path.read_text())):
        rank = RANK.get(name.split(".")[0])
        assert rank is None or rank >= own, f"{path.name} imports {name}, which stands above it"


@pytest.mark.parametrize("path", layered(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_edges_know_http_and_only_the_engine_knows_torch(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    names = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
    if part not in ("main", "api", "streaming"):
        assert not names & {"fastapi", "starlette", "uvicorn"}
    if part != "engine":
        assert not names & {"torch", "transformers"}
    if part != "config":
        assert "environ" not in path.read_text()


def test_the_command_line_and_the_server_know_each_other_by_http_only() -> None:
    own = {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in SOURCES}
    for path in SOURCES:
        names = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
        if path.parent.name == "cli":
            assert not names & (own - {"cli"}), f"{path.name} imports the server"
            assert "environ" not in path.read_text()
        else:
            assert "cli" not in names, f"{path.name} imports the command line"


def test_files_and_functions_stay_small() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert text.count("\n") <= 330, f"{path} is too long"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 50, f"{path}:{node.name} is too long"


def test_every_test_name_is_a_sentence() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name in re.findall(r"def (test_\w+)", path.read_text()):
            assert name.count("_") >= 2, f"{path.name}: {name}"
