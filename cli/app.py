"""The commands and their options. Exit status: 0, 1 when something failed, 2 for wrong usage, 130 after Ctrl-C."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cli.client import Client, Failure, Wanted
from cli.options import Alternatives, ApiKey, Debug, Delay, Interval, Keyword, Language, Model, Prompt, Quiet, Server
from cli.recordings import stdin_pipe
from cli.screen import Screen
from cli.transcribing import Job, transcribe_all

app = typer.Typer(
    help="Speech to text with a Voxtral Local server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    """The API's `response_format`."""

    text = "text"
    json = "json"
    srt = "srt"
    vtt = "vtt"
    verbose_json = "verbose_json"

    @property
    def suffix(self) -> str:
        return {"text": ".txt", "verbose_json": ".json"}.get(self.value, f".{self.value}")


SERVER = "http://127.0.0.1:11344"
AT_THE_END = (
    "the transcript comes when the pipe ends; text on stdout, of WAV or samples in the pipe, comes as it is heard"
)


@contextmanager
def connected(server: str, key: str | None, quiet: bool, debug: bool) -> Iterator[tuple[Client, Screen]]:
    """A client and a screen; a Failure inside is said, and ends the program with status 1. So is that there is no room
    for what is written."""
    if debug:
        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s: %(message)s")
    screen = Screen(quiet)
    client = Client(server, key, screen.warn)
    try:
        yield client, screen
    except Failure as failure:
        screen.error(str(failure))
        raise typer.Exit(1) from None
    except BrokenPipeError:  # who reads stdout has enough, over which typer ends the program without a word
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter would say it again at its end
        screen.error(f"stdout: {error.strerror}.")
        raise typer.Exit(1) from None
    finally:
        client.close()


@app.command()
def transcribe(  # noqa: PLR0913 - its options
    files: Annotated[list[Path] | None, typer.Argument(help="Recordings, audio or video.", metavar="FILE…")] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="What is piped in: a recording, or s16le samples at 16 kHz, mono.")
    ] = False,
    format: Annotated[Format, typer.Option("--format", "-f", help="How transcripts are written.")] = Format.text,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="File to write, or folder for several.", show_default="stdout")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there already.")] = False,
    at_once: Annotated[int, typer.Option(min=1, max=64, help="Files that the server has at a time.")] = 4,
    model: Model = "whisper-1",
    language: Language = None,
    prompt: Prompt = None,
    keyword: Keyword = None,
    alt: Alternatives = None,
    delay: Delay = None,
    interval: Interval = None,
    server: Server = SERVER,
    api_key: ApiKey = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Transcribe recordings. Text is printed as it is heard, that of a pipe of WAV or samples a line for each pause.

    Files are heard with all of their sound at once, so --delay and --interval are for the text of such a pipe.
    """
    if bool(files) == stdin:
        raise typer.BadParameter("name files, or pipe a recording in and say --stdin.", param_hint="FILE…")
    if stdin:
        _check_pipe("--stdin")
    sources: list[Path | None] = [None] if stdin else list(files or [])
    if alt is not None and format is not Format.text:
        raise typer.BadParameter("other tokens are shown in text only.", param_hint="--alt")
    as_it_comes = stdin and format is Format.text and output is None
    if not as_it_comes and (delay, interval) != (None, None):
        raise typer.BadParameter("only text of --stdin, on stdout, can have these.", param_hint="--delay or --interval")
    jobs = _jobs(sources, output, format, overwrite)
    wanted = Wanted(format.value, model, language, prompt, tuple(keyword or ()), alt)
    with connected(server, api_key, quiet, debug) as (client, screen):
        if as_it_comes:
            client.health()  # lest somebody pipe to nobody
            status = _transcribe_pipe(jobs[0], client, wanted, (delay, interval), screen)
        else:
            if stdin:
                screen.warn(AT_THE_END)
                jobs = [replace(jobs[0], pipe=stdin_pipe())]
            status = 1 if transcribe_all(jobs, client, wanted, at_once, screen) else 0
    raise typer.Exit(status)


def _transcribe_pipe(
    job: Job, client: Client, wanted: Wanted, chosen: tuple[int | None, float | None], screen: Screen
) -> int:
    """Text as it is heard where a recording can be played from its beginning, else as that of a file. `chosen`: delay
    and interval. Returns the exit status."""
    pipe = stdin_pipe()
    if pipe.is_wave:
        # These bring numpy and PyAV, which files need not wait for.
        from cli import live, sources

        source = sources.Played(pipe, paced=False)
        return live.listen_live(source, client, wanted, live.Live(*chosen, recorded=True), screen)
    if chosen != (None, None):
        raise Failure("--delay and --interval need WAV or samples in the pipe.")
    screen.warn(AT_THE_END)
    return 1 if transcribe_all([replace(job, pipe=pipe)], client, wanted, 1, screen) else 0


def _check_pipe(option: str) -> None:
    if sys.stdin is None or sys.stdin.isatty():
        raise typer.BadParameter("nothing is piped in. Try: ffmpeg -i talk.mp4 -f wav - | …", param_hint=option)


def _jobs(sources: list[Path | None], output: str | None, format: Format, overwrite: bool) -> list[Job]:
    """Where each transcript goes. Whatever is wrong with that is said before anything is transcribed."""
    if output is None:
        if len(sources) > 1 and format in (Format.srt, Format.vtt):
            raise typer.BadParameter("subtitles of several files need a folder.", param_hint="--output")
        return [Job(source, None) for source in sources]
    target, given = Path(output), Path(output).is_dir()
    if given or len(sources) > 1 or output.endswith("/"):
        targets = [target / ((source.stem if source else "stdin") + format.suffix) for source in sources]
    else:
        targets = [target]
    for path in targets:
        if targets.count(path) > 1:
            raise typer.BadParameter(f"several files would be written to {path}.", param_hint="--output")
        if path.exists() and not overwrite:
            raise typer.BadParameter(f"{path} is there already; --overwrite replaces it.", param_hint="--output")
    try:
        targets[0].parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{targets[0].parent}: {error.strerror}.", param_hint="--output") from None
    return [Job(source, path, overwrite) for source, path in zip(sources, targets, strict=True)]


@app.command()
def listen(  # noqa: PLR0913 - its options
    input: Annotated[
        str | None,
        typer.Option("--input", help="Play a file as if it were spoken now; `-`: what is piped in.", metavar="FILE"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Microphone by its number or name.")] = None,
    longest: Annotated[float, typer.Option(min=1, max=60, help="Longest seconds that are sent at once.")] = 20,
    live: Annotated[bool, typer.Option("--live", help="Print what is spoken while it is spoken.")] = False,
    delay: Delay = None,
    interval: Interval = None,
    alt: Alternatives = None,
    model: Model = "whisper-1",
    language: Language = None,
    prompt: Prompt = None,
    keyword: Keyword = None,
    server: Server = SERVER,
    api_key: ApiKey = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Transcribe what is spoken, a line for each utterance, when a pause ends it. Ctrl-C ends it all.

    With --live, --delay or --interval a realtime model prints words as they are spoken. It ends when the server falls
    30 s behind, and what is spoken then is lost; a pipe waits, and without --live listen catches up.
    """
    if input and device:
        raise typer.BadParameter("a file has no device.", param_hint="--device")
    if input == "-":
        _check_pipe("--input")
    # These bring numpy and PyAV, which the other commands need not wait for.
    from cli import listening, sources
    from cli import live as live_listening

    options = live_listening.Live(delay, interval)
    is_live = live or options != live_listening.Live()
    wanted = Wanted("text", model, language, prompt, tuple(keyword or ()), alt)
    with connected(server, api_key, quiet, debug) as (client, screen):
        client.health()  # lest somebody speak to nobody
        if input is None:
            source: Any = sources.Microphone(device, screen.warn)
        elif input == "-":
            source = sources.Played(stdin_pipe(), paced=False)
        else:
            source = sources.Played(input, paced=True)
        if is_live:
            status = live_listening.listen_live(source, client, wanted, options, screen)
        else:
            status = listening.listen(source, client, wanted, longest, screen)
    raise typer.Exit(status)


@app.command()
def models(server: Server = SERVER, api_key: ApiKey = None, quiet: Quiet = False, debug: Debug = False) -> None:
    """List the server's models: id, whether it is loaded, and the names that mean it."""
    with connected(server, api_key, quiet, debug) as (client, _):
        found = client.models()
        width = max((len(model.id) for model in found), default=0)
        for model in found:
            print(f"{model.id:<{width}}  {model.state:<7}  {' '.join(model.aliases)}".rstrip())


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="Repository of the Hugging Face Hub, or a name of a known model.")],
    server: Server = SERVER,
    api_key: ApiKey = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Let the server fetch a model. Ctrl-C leaves the download to it."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with connected(server, api_key, quiet, debug) as (client, screen):
        with screen.bars(*columns) as bars:
            task = bars.add_task(model, total=None)
            for event in client.pull(model):
                counts = {name: event[name] for name in ("total", "completed") if event.get(name)}
                bars.update(task, description=f"{model} {event['status']}", **counts)
        screen.note(f"{model} is on the server")


@app.command()
def health(server: Server = SERVER, api_key: ApiKey = None, quiet: Quiet = False, debug: Debug = False) -> None:
    """Say how the server is. The status is 1 where it is not well."""
    with connected(server, api_key, quiet, debug) as (client, _):
        found = client.health()
        print(f"{found['status']}: {found['model']} is {found['model_state'].replace('_', ' ')}, {found['device']}")
        if found["model_description"]:
            print(found["model_description"])
        if found["download"]:
            print("downloading: {percent} %".format(**found["download"]))
        print(f"{found['requests']} requests, {found['memory_bytes'] / 1e9:.2f} GB of memory")
        if found["status"] != "healthy":
            raise Failure(found["error"] or "the server is not well; its log says why.")
