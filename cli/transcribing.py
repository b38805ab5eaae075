"""Recordings to transcripts: several at once at the server, each written out whole and in the order they were given."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from cli.client import Client, Failure, Figures, NoServer, Readable, Recording, Wanted
from cli.recordings import Counted, Pipe
from cli.screen import Screen

WATCH_SECONDS = 1.0
COLUMNS = (
    SpinnerColumn(),
    TextColumn("{task.description}", markup=False),
    BarColumn(),
    TextColumn("{task.fields[amount]}"),
    TimeElapsedColumn(),
)


@dataclass(frozen=True)
class Job:
    """One transcript to be made."""

    source: Path | None  # None: what is piped in
    target: Path | None  # None: to stdout
    overwrite: bool = False
    pipe: Pipe | None = None

    @property
    def name(self) -> str:
        return str(self.source) if self.source else "stdin"


class Bar:
    """Of one job: bytes sent, then seconds heard. Used by the job's thread and by the one that watches."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name, self._sent = progress, name, 0
        self._task: TaskID | None = None
        self._lock = threading.RLock()

    def sending(self, size: int | None) -> None:
        self._sent = 0
        self._begin(size, "sending")

    def sent(self, count: int) -> None:
        self._sent += count
        if count:
            self._update(completed=self._sent, amount=f"{decimal(self._sent)} sent")
        else:
            self._begin(None, "listening")

    def heard(self, figures: Figures) -> None:
        of = "heard" if figures.of is None else f"of {clock(figures.of)}"
        left = "" if figures.left is None else f", {clock(figures.left)} left"
        self._update(total=figures.of, completed=figures.done, amount=f"{clock(figures.done)} {of}{left}")

    def _begin(self, total: float | None, amount: str) -> None:
        with self._lock:
            self.end()
            self._task = self._progress.add_task(self._name, total=total, amount=amount)

    def _update(self, **values: Any) -> None:
        with self._lock:
            if self._task is not None:
                self._progress.update(self._task, **values)

    def end(self) -> None:
        with self._lock:
            if self._task is not None:
                self._progress.remove_task(self._task)
                self._task = None


class Hearing(threading.Thread):
    """One job at work; a daemon, so that Ctrl-C need not wait for the server."""

    def __init__(self, job: Job, client: Client, wanted: Wanted, progress: Progress) -> None:
        super().__init__(daemon=True)
        self.job = job
        self._client, self._wanted, self._bar = client, wanted, Bar(progress, job.name)
        once = job.source is None or not job.source.is_file()
        self._recording = Recording(job.name, self._opened, once)
        self._texts: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()

    def run(self) -> None:
        try:
            for text in self._client.transcribe(self._recording, self._wanted):
                self._texts.put(text)
            self._texts.put(None)
        except Exception as error:  # noqa: BLE001 - raised again by texts()
            self._texts.put(error)
        self._bar.end()

    @contextmanager
    def _opened(self) -> Iterator[Readable]:
        if self.job.pipe:
            self._bar.sending(None)
            yield Counted(self.job.pipe, self._bar.sent)
            return
        with self.job.source.open("rb") as file:
            self._bar.sending(os.fstat(file.fileno()).st_size or None)
            yield Counted(file, self._bar.sent)

    def look(self) -> None:
        """Ask the server how far it is. Raises Failure."""
        if self.is_alive() and (progress := self._client.progress(self._recording.id)):
            self._bar.heard(progress)

    def texts(self) -> Iterator[str]:
        """Text as it comes, to the end. Raises what ended it."""
        while (text := self._texts.get()) is not None:
            if isinstance(text, Exception):
                raise text
            yield text


def transcribe_all(jobs: Iterable[Job], client: Client, wanted: Wanted, at_once: int, screen: Screen) -> int:
    """Do all jobs; returns how many failed, each after a line that says why. Raises NoServer."""
    failed = 0
    with screen.bars(*COLUMNS) as progress:
        hearings = [Hearing(job, client, wanted, progress) for job in jobs]
        if screen.live:
            threading.Thread(target=_watch, args=(hearings,), daemon=True).start()
        for hearing in _started(hearings, at_once):
            try:
                _deliver(hearing, screen)
            except NoServer:
                raise
            except Failure as failure:
                screen.error(f"{hearing.job.name}: {failure}")
                failed += 1
    return failed


def _watch(hearings: list[Hearing]) -> None:
    """Bars follow the server's own figures. If it has none, its answers say what is wrong."""
    with suppress(Failure):
        while True:
            time.sleep(WATCH_SECONDS)
            for hearing in hearings:
                hearing.look()


def _started(hearings: list[Hearing], at_once: int) -> Iterator[Hearing]:
    """Each in its turn, with those behind it at work too."""
    waiting = deque(hearings)
    running: deque[Hearing] = deque()
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(waiting.popleft())
            running[-1].start()
        yield running[0]
        running.popleft()


def _deliver(hearing: Hearing, screen: Screen) -> None:
    job = hearing.job
    if job.target is None:
        write_out(hearing.texts(), screen)
        return
    text = "".join(hearing.texts())
    try:
        with job.target.open("w" if job.overwrite else "x", encoding="utf-8", newline="") as file:
            file.write(text if text.endswith("\n") else text + "\n")
    except OSError as error:
        raise Failure(f"{job.target}: {error.strerror}.") from None
    screen.note(f"{job.name} → {job.target}")


def write_out(texts: Iterator[str], screen: Screen) -> None:
    """To stdout, each at once, so that whoever reads a pipe has it too. What was begun ends with a newline."""
    last = ""
    with ExitStack() as bars_away:
        try:
            for text in texts:
                if not last:
                    bars_away.enter_context(screen.writing())
                sys.stdout.write(text)
                sys.stdout.flush()
                last = text
        finally:
            if last and not last.endswith("\n"):
                print(flush=True)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02}"
