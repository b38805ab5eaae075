"""Clients that run in a process of their own: a script drives one and prints its results as JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.roster import NODE, ROOT

LITELLM_PYTHON = ROOT / ".venv" / "litellm" / "bin" / "python"


class Results(dict[str, Any]):
    """What each step of a script gave. To look at a step that threw fails the test with what was thrown."""

    def __getitem__(self, step: str) -> Any:
        result = super().__getitem__(step)
        assert not (isinstance(result, dict) and "thrown" in result), f"{step}: {result}"
        return result

    def thrown(self, step: str) -> dict[str, str]:
        """What a step that had to throw has thrown."""
        result = super().__getitem__(step)
        assert "thrown" in result, f"{step}: {result}"
        return result


def require(present: bool, what: str) -> None:
    """Skip the test where something is missing; but CI must miss nothing."""
    if not present and os.environ.get("CI"):
        pytest.fail(what)
    if not present:
        pytest.skip(what)


def node_command() -> list[str | Path]:
    """Node, the newer one that comes with the packages where there is one for this platform."""
    require((NODE / "node_modules").is_dir(), "the Node clients are not installed: ./run_tests.sh does that with npm")
    own = NODE / "node_modules" / ".bin" / "node"
    return [own if own.exists() else shutil.which("node") or "node"]


def litellm_command() -> list[str | Path]:
    require(LITELLM_PYTHON.exists(), "LiteLLM is not installed: ./run_tests.sh does that")
    return [LITELLM_PYTHON]


def output(command: list[str | Path], folder: Path = ROOT) -> str:
    """Standard output of a command that must succeed. LiteLLM would ask the network for prices when it is imported."""
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 100}
    done = subprocess.run(command, **options, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def results(command: list[str | Path]) -> Results:
    return Results(json.loads(output(command)))
