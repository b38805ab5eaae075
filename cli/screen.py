"""What people see on stderr: errors always, warnings unless --quiet, bars and notes only on a terminal.

Text on stdout and a bar on stderr would overwrite each other where both are the same terminal, so bars are taken away
while text is written there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, ProgressColumn


class Screen:
    def __init__(self, quiet: bool) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._quiet = quiet
        self._bars: Progress | None = None
        self.live = not quiet and self._console.is_terminal

    def error(self, text: str) -> None:
        self._say(f"voxtral: {text}", "red")

    def warn(self, text: str) -> None:
        if not self._quiet:
            self._say(f"voxtral: {text}", "yellow")

    def note(self, text: str) -> None:
        if self.live:
            self._say(text, "dim")

    def _say(self, text: str, style: str) -> None:
        self._console.print(text, style=style, markup=False, emoji=False, soft_wrap=True)

    @contextmanager
    def bars(self, *columns: ProgressColumn) -> Iterator[Progress]:
        """Bars while the block runs."""
        # rich would send what is printed on stdout to its own console, and so past a pipe.
        self._bars = Progress(
            *columns, console=self._console, transient=True, redirect_stdout=False, disable=not self.live
        )
        with self._bars:
            yield self._bars
        self._bars = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Bars are out of the way while the block writes to stdout."""
        bars = self._bars if self.live and sys.stdout.isatty() else None
        if bars:
            bars.stop()
        try:
            yield
        finally:
            if bars:
                bars.start()
