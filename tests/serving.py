"""A real server process on the demo model, as users start it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx

from config import Settings

ROOT = Path(__file__).resolve().parent.parent
DEMOS = ["voxtral-demo", "voxtral-demo-realtime"]  # that `--demo` serves
LISTENS = re.compile(r"listens on (http://\S+)")
OWN_VARIABLES = {name.upper() for name in Settings.model_fields}


def clean_environment(**settings: str) -> dict[str, str]:
    """This process's environment without settings of ours that happen to be in it, plus `settings`. No chunk is kept:
    tests mean what the model does, and the user's cache is not theirs. All CPUs compute in float32, so that the demo
    models, for which a word may hang by a hair, hear the same on each."""
    kept = {k: v for k, v in os.environ.items() if k not in OWN_VARIABLES}
    return {**kept, "HF_HUB_OFFLINE": "1", "CHUNK_STORE_MB": "0", "VOXTRAL_DTYPE": "float32", **settings}


def run_cli(server: str, *arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m cli`, to its end."""
    result = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT, env=clean_environment(VOXTRAL_SERVER=server, **environment), input=stdin, capture_output=True,
        timeout=100, check=False,
    )  # fmt: skip
    return subprocess.CompletedProcess(result.args, result.returncode, result.stdout.decode(), result.stderr.decode())


class Server:
    """`with Server("--demo") as server:` serves on a free port and has loaded its model when the body runs."""

    def __init__(self, *arguments: str, wait_for_model: bool = True, **settings: str) -> None:
        self._command = [sys.executable, "main.py", "--port", "0", *arguments]
        self._environment = clean_environment(**settings)
        self._wait_for_model = wait_for_model

    def __enter__(self) -> Server:
        self.process = subprocess.Popen(
            self._command, cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = self.process.stdout.readline()
        found = LISTENS.search(line)
        assert found, f"the server did not start: {line!r}"
        self.url = found[1]
        self.client = httpx.Client(base_url=self.url, timeout=60)
        try:
            self.wait_until(lambda health: health["model_loaded"] or not self._wait_for_model)
        except BaseException:
            self.__exit__()  # or what is left of it would fail another test
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(20)
        self.process.stdout.close()

    def health(self) -> dict:
        return self.client.get("/health").json()

    def wait_until(self, condition, seconds: float = 60) -> dict:
        """Poll /health until `condition` holds of it."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            try:
                if condition(health := self.health()):
                    return health
            except httpx.TransportError:
                assert self.process.poll() is None, "the server has died"
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s; /health says {health}")
