"""Speech as it is spoken: utterances go to the server when a pause ends them, and their text to stdout.

One thread cuts what the source gives; this one sends and prints. What is spoken meanwhile waits, and all that waits is
sent together, which the server decodes side by side: so it catches up.
"""

from __future__ import annotations

import io
import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn

from cli.client import Client, Failure, Recording, Wanted
from cli.recordings import wav_header
from cli.screen import Screen
from cli.sources import Source
from cli.transcribing import write_out
from cli.utterances import SILENCE_DB, Utterances

INTERRUPTED = 128 + signal.SIGINT  # the exit status that shells expect
MOST_WAITING = 32  # utterances; a source that can wait waits then
COLUMNS = (
    TextColumn("{task.fields[state]:<9}"),
    BarColumn(bar_width=30),
    TextColumn("{task.fields[level]:>4.0f} dB"),
)

Waiting = queue.Queue[np.ndarray | Exception | None]


def listen(source: Source, client: Client, wanted: Wanted, longest: float, screen: Screen) -> int:
    """Until the source ends or Ctrl-C, after which what was spoken is still heard. Returns the exit status."""
    waiting: Waiting = queue.Queue(MOST_WAITING)
    lost = False
    with interruptible(source) as interrupted, screen.bars(*COLUMNS) as meter:
        threading.Thread(target=_record, args=(source, longest, waiting, meter), daemon=True).start()
        for utterances in _batches(waiting):
            speech = np.concatenate(utterances)
            seconds = len(speech) / source.rate
            if source.live and len(utterances) > 1:
                screen.warn(f"the server is slower than you speak; {seconds:.0f} s are heard together to catch up")
            try:
                write_out(_spoken(_text(speech, source.rate, client, wanted)), screen)
            except Failure as failure:
                screen.error(f"{seconds:.1f} s of speech are lost: {failure}")
                lost = True
    return INTERRUPTED if interrupted.is_set() else int(lost)


@contextmanager
def interruptible(source: Source) -> Iterator[threading.Event]:
    """Ctrl-C switches the source off, and only the second one ends everything at once."""
    interrupted = threading.Event()

    def switch_off(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupted.set()
        source.stop()

    before = signal.signal(signal.SIGINT, switch_off)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _record(source: Source, longest: float, waiting: Waiting, meter: Progress) -> None:
    utterances = Utterances(source.rate, longest)
    bar = meter.add_task("", total=-SILENCE_DB, state="", level=SILENCE_DB)
    end = None
    try:
        for block in source.blocks():
            for utterance in utterances.feed(block):
                waiting.put(utterance)
            state = "speech" if utterances.speaking else "listening"
            meter.update(bar, completed=utterances.level - SILENCE_DB, level=utterances.level, state=state)
    except Exception as error:  # noqa: BLE001 - raised again by _batches, after what was spoken before it
        end = error
    for utterance in utterances.finish():
        waiting.put(utterance)
    waiting.put(end)


def _batches(waiting: Waiting) -> Iterator[list[np.ndarray]]:
    """All utterances that wait, each time that there are some. Raises what ended the recording."""
    while True:
        items = [waiting.get()]
        with suppress(queue.Empty):
            while True:
                items.append(waiting.get_nowait())
        if utterances := [item for item in items if isinstance(item, np.ndarray)]:
            yield utterances
        if isinstance(items[-1], Exception):
            raise items[-1]
        if items[-1] is None:
            return


def _text(speech: np.ndarray, rate: int, client: Client, wanted: Wanted) -> Iterator[str]:
    data = wav_header(rate, speech.nbytes) + speech.astype("<i2").tobytes()
    recording = Recording("microphone", lambda: io.BytesIO(data))
    return client.transcribe(recording, wanted)


def _spoken(texts: Iterator[str]) -> Iterator[str]:
    """Nothing at all where nobody spoke: a cough or a door leaves no empty line."""
    first = next(texts, "\n")
    if first.strip():
        yield first
        yield from texts
