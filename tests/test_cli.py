"""`python -m cli` as people run it: real processes against the demo server, and against servers that misbehave."""

from __future__ import annotations

import json
import math
import os
import pty
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.progress import Progress
from typer.testing import CliRunner, Result

from api.realtime_openai import OpenAIDialect
from cli import listening
from cli.alternatives import shown
from cli.app import app
from cli.client import Recording, Wanted
from cli.live import Live, _Sender, _Talk
from cli.recordings import wav_header
from cli.screen import Screen
from cli.utterances import FRAME_MS, Utterances
from live import LiveRequest
from tests.dialects import MODELS, TERMS
from tests.serving import DEMOS, ROOT, Server, clean_environment, run_cli
from tests.speech import SAMPLE_RATE, assert_heard, clip, wav
from turns import TurnDetection

SHORT, OTHER = clip("short_0"), clip("short_1")
ALTERNATIVES = re.compile(r"\[([^|]+)\|[^]]*\]")  # `[this|other]`


def started(server: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT, env=clean_environment(VOXTRAL_SERVER=server, **environment),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def called(server: str, *arguments: str, **environment: str) -> Result:
    """The same in this process, where no pipe or signal is needed: a new one takes a second to import."""
    return CliRunner().invoke(app, arguments, env={"VOXTRAL_SERVER": server, **environment})


def transcript(server: Server, data: bytes, response_format: str = "text") -> str:
    form = {"model": "whisper-1", "response_format": response_format}
    return server.client.post("/v1/audio/transcriptions", files={"file": data}, data=form).text


def samples_of(data: np.ndarray) -> bytes:
    return (data * 32767).astype("<i2").tobytes()


# Transcribing.


@pytest.mark.parametrize("response_format", ["text", "json", "srt", "vtt", "verbose_json"])
def test_every_format_is_what_the_api_answers(server: Server, response_format: str) -> None:
    result = called(server.url, "transcribe", str(SHORT.path), "--format", response_format)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.rstrip("\n") == transcript(server, SHORT.data, response_format).rstrip("\n")
    assert result.stdout.endswith("\n")


def test_several_files_are_printed_in_order_and_a_broken_one_stops_no_other(server: Server, tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF" + bytes(100))
    files = [str(broken), str(SHORT.path), str(tmp_path / "missing.wav"), str(OTHER.path)]
    result = run_cli(server.url, "transcribe", *files)
    assert result.returncode == 1
    assert result.stdout == transcript(server, SHORT.data) + transcript(server, OTHER.data)
    first, second = result.stderr.splitlines()
    assert first.startswith(f"voxtral: {broken}: Audio file might be corrupted")
    assert second == f"voxtral: {tmp_path / 'missing.wav'}: No such file or directory."


def test_files_are_written_to_a_folder_and_never_over_others_unasked(server: Server, tmp_path: Path) -> None:
    command = ["transcribe", str(SHORT.path), str(OTHER.path), "--format", "srt", "--output", str(tmp_path / "out")]
    assert called(server.url, *command).exit_code == 0
    written = tmp_path / "out" / "short_0.srt"
    assert written.read_text() == transcript(server, SHORT.data, "srt")
    assert {file.name for file in written.parent.iterdir()} == {"short_0.srt", "short_1.srt"}
    written.write_text("mine")
    refused = called(server.url, *command)
    assert (refused.exit_code, written.read_text()) == (2, "mine")
    assert "--overwrite" in refused.stderr
    assert called(server.url, *command, "--overwrite").exit_code == 0
    assert written.read_text() != "mine"


@pytest.mark.parametrize(
    "piped",
    [samples_of(SHORT.samples()), wav_header(SAMPLE_RATE) + samples_of(SHORT.samples())],
    ids=["raw samples", "wav without a length"],
)
def test_a_pipe_is_heard_as_the_file_is(server: Server, piped: bytes) -> None:
    result = run_cli(server.url, "transcribe", "--stdin", stdin=piped)
    assert (result.returncode, result.stdout) == (0, transcript(server, SHORT.data))


@pytest.mark.parametrize("model", DEMOS)
def test_text_of_a_pipe_is_printed_while_it_is_open_and_all_of_it_at_its_end(server: Server, model: str) -> None:
    with started(server.url, "transcribe", "--stdin", "--model", model) as process:
        process.stdin.write(samples_of(spoken_twice()))
        process.stdin.flush()
        assert_heard(SHORT.words, process.stdout.readline().decode(), share=0.34)
        process.stdin.write(samples_of(SHORT.samples()))  # ends in the middle of a turn
        process.stdin.close()
        rest = process.stdout.read()
        assert (process.wait(60), process.stderr.read()) == (0, b"")
    assert_heard(f"{OTHER.words} {SHORT.words}", " ".join(rest.decode().split()), share=0.34)


def test_ctrl_c_ends_an_open_pipe_whose_text_is_still_printed(server: Server) -> None:
    with started(server.url, "transcribe", "--stdin") as process:
        process.stdin.write(samples_of(spoken_twice()))
        process.stdin.flush()
        heard = process.stdout.readline().decode()
        process.send_signal(signal.SIGINT)
        heard += process.stdout.read().decode()
        assert (process.wait(60), process.stderr.read()) == (130, b"")
    assert_heard(f"{SHORT.words} {OTHER.words}", " ".join(heard.split()), share=0.34)


@pytest.mark.parametrize("options", [[], ["--format", "srt"], ["--output"]], ids=str)
def test_what_needs_the_whole_of_a_pipe_is_heard_as_the_file_is_and_said_to_come_at_its_end(
    server: Server, tmp_path: Path, options: list[str]
) -> None:
    """A recording in FLAC, a format with times, and a file."""
    target = tmp_path / "heard.txt"
    result = run_cli(
        server.url, "transcribe", "--stdin", *options, *([str(target)] if "--output" in options else []),
        stdin=SHORT.data,
    )  # fmt: skip
    heard = target.read_text() if target.exists() else result.stdout
    assert (result.returncode, heard) == (0, transcript(server, SHORT.data, "srt" if "srt" in options else "text"))
    assert re.fullmatch(r"voxtral: the transcript comes when the pipe ends; .*\n", result.stderr)


@pytest.mark.parametrize(
    ("piped", "options", "said"),
    [
        (b"", [], "nothing came through the pipe"),
        (wav_header(SAMPLE_RATE), [], "the recording has no sound"),
        (SHORT.data, ["--delay", "960"], "--delay and --interval need WAV or samples in the pipe"),
        (bytes(32_000), ["--language", "klingon"], "language"),
        (bytes(32_000), ["--model", "gpt-2"], "gpt-2"),
    ],
    ids=["nothing", "no sound", "delay", "language", "model"],
)
def test_a_pipe_that_cannot_be_heard_as_asked_is_an_error(
    server: Server, piped: bytes, options: list[str], said: str
) -> None:
    result = run_cli(server.url, "transcribe", "--stdin", *options, stdin=piped)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert said in result.stderr


def test_keywords_and_other_tokens_are_for_pipes_too(server: Server) -> None:
    gray = clip("sounds_like_gray")
    result = run_cli(server.url, "transcribe", "--stdin", "-k", "grey", "--alt", "1", stdin=samples_of(gray.samples()))
    assert (result.returncode, result.stderr) == (0, "")
    assert "grey" in ALTERNATIVES.sub(r"\1", result.stdout) != result.stdout


def test_language_prompt_and_keywords_reach_the_server(server: Server) -> None:
    gray = clip("sounds_like_gray")
    result = called(server.url, "transcribe", str(gray.path), "-l", "English", "-k", "grey", "-k", "Lotti")
    assert "grey" in result.stdout
    refused = called(server.url, "transcribe", str(SHORT.path), "--language", "klingon", "--prompt", "Gardens.")
    assert refused.exit_code == 1
    assert "language" in refused.stderr


@pytest.mark.parametrize("model", DEMOS)
@pytest.mark.parametrize("command", [["transcribe"], ["listen", "--input"]])
def test_tokens_that_may_be_others_are_shown_with_them(server: Server, command: list[str], model: str) -> None:
    heard = [
        called(server.url, *command, str(SHORT.path), "--model", model, *alt).stdout
        for alt in ([], ["--alt", "0"], ["--alt", "1"])
    ]
    assert heard[0] == heard[1] != heard[2]
    assert ALTERNATIVES.sub(r"\1", heard[2]) == heard[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["transcribe"],
        ["transcribe", "a.wav", "--stdin"],
        ["transcribe", "a.wav", "b.wav", "--format", "vtt"],
        ["transcribe", "a/x.wav", "b/x.wav", "--output", "."],
        ["transcribe", "a.wav", "--format", "docx"],
        ["models", "--server", "localhost:11344"],
        ["listen", "--input", "a.wav", "--device", "1"],
        ["listen", "--delay", "100"],
        ["transcribe", "a.wav", "--delay", "960"],
        ["transcribe", "a.wav", "--interval", "1"],
        ["listen", "--alt", "1.5"],
        ["transcribe", "a.wav", "--alt", "0.5", "--format", "json"],
        ["listen", "--alt", "nan"],
        ["listen", "--interval", "nan"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_told_before_anything_is_sent(arguments: list[str]) -> None:
    result = called("http://127.0.0.1:1", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage:" in result.stderr


def on_terminal(server: str, *options: str) -> tuple[bytes, bytes]:
    """stdout as a pipe has it, and what a terminal shows of stderr."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cli", "transcribe", str(SHORT.path), *options]
    environment = clean_environment(VOXTRAL_SERVER=server, TERM="xterm")
    output = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how Linux says that the other end is closed
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    return output.stdout, shown


def test_bars_are_for_terminals_follow_the_servers_figures_and_leave_stdout_alone() -> None:
    asked = threading.Semaphore(0)

    def slow(request: BaseHTTPRequestHandler) -> None:
        for _ in range(3):
            assert asked.acquire(timeout=60)
        answer(request, 200, HELLO + DONE)

    def figures(request: BaseHTTPRequestHandler) -> None:
        asked.release()
        found = {"audio_seconds_done": 42.5, "audio_seconds": 84.0, "remaining_seconds": 7.0}
        answer(request, 200, json.dumps(found).encode())

    with Scripted(slow, *[figures] * 10) as server:
        printed, shown = on_terminal(server.url)
        assert printed == b"hello\n"
        assert b"0:42 of 1:24, 0:07 left" in shown
        assert b"short_0.flac" in shown
        assert f"/v1/transcriptions/{server.ids[0]}" in server.paths
    with Scripted(stream(HELLO, DONE)) as server:
        assert on_terminal(server.url, "--quiet") == (b"hello\n", b"")


# Listening.


def spoken_twice() -> np.ndarray:
    """Two utterances with a pause between."""
    pause = np.zeros(int(1.2 * SAMPLE_RATE), np.float32)
    return np.concatenate([SHORT.samples(), pause, OTHER.samples(), pause])


def test_a_file_played_as_a_microphone_gives_a_line_for_each_utterance(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "spoken.wav"
    file.write_bytes(wav(spoken_twice()))
    result = run_cli(server.url, "listen", "--input", str(file))
    assert (result.returncode, result.stderr) == (0, "")
    first, second = result.stdout.splitlines()
    assert_heard(SHORT.words, first, share=0.34)
    assert_heard(OTHER.words, second, share=0.34)


def test_a_pipe_is_listened_to_without_waiting_for_its_end(server: Server) -> None:
    with started(server.url, "listen", "--input", "-") as process:
        process.stdin.write(samples_of(spoken_twice()))
        process.stdin.flush()
        assert_heard(SHORT.words, process.stdout.readline().decode(), share=0.34)
        process.stdin.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""


def test_what_is_spoken_faster_than_it_is_heard_is_heard_together_with_a_warning(
    capsys: pytest.CaptureFixture,
) -> None:
    """Two utterances come while the server has the first."""
    speech, pause = np.full(SAMPLE_RATE, 9000, np.int16), np.zeros(SAMPLE_RATE, np.int16)
    asked, spoken, lengths = threading.Event(), threading.Event(), []

    def blocks() -> Iterator[np.ndarray]:
        yield from (speech, pause)
        assert asked.wait(60)
        yield from (speech, pause, speech, pause)
        spoken.set()

    def transcribe(recording: Recording, wanted: Wanted) -> Iterator[str]:
        asked.set()
        assert spoken.wait(60)
        lengths.append(len(recording.open().read()))
        yield "heard\n"

    source = SimpleNamespace(rate=SAMPLE_RATE, live=True, blocks=blocks, stop=lambda: None)
    screen = Screen(quiet=False)
    assert listening.listen(source, SimpleNamespace(transcribe=transcribe), Wanted(), 20, screen) == 0
    assert len(lengths) == 2
    assert lengths[1] > 1.9 * lengths[0]
    shown = capsys.readouterr()
    assert shown.out == "heard\n" * 2
    assert re.fullmatch(
        r"voxtral: the server is slower than you speak; 3 s are heard together to catch up\n", shown.err
    )


@pytest.mark.parametrize(("model", "useless"), [(DEMOS[0], ["--delay", "--interval"]), (DEMOS[1], [])])
def test_live_every_turn_is_a_line_and_what_the_model_cannot_do_is_said(
    server: Server, model: str, useless: list[str]
) -> None:
    """The rate of a pipe is the model's, and it is sent as fast as the server takes it."""
    options = ["--live", "--model", model, "--delay", "240", "--interval", "0.5", "--alt", "0.999", "--language", "en"]
    with started(server.url, "listen", "--input", "-", *options) as process:
        out, error = process.communicate(samples_of(spoken_twice()))
    assert process.returncode == 0
    said = [line.split()[1:4] for line in error.decode().splitlines()]
    assert said == [[option, "changes", "nothing:"] for option in useless]
    first, second = (re.sub(r"\[(\w+)[^]]*\]", r"\1", line) for line in out.decode().splitlines())
    assert_heard(SHORT.words, first, share=0.34)
    assert_heard(OTHER.words, second, share=0.34)


def test_what_live_options_ask_for_is_what_the_server_understands() -> None:
    wanted = Wanted(model="live", language="en", keywords=("Lotti",), alternatives=0.5)
    dialect = OpenAIDialect(TERMS, MODELS["live"])
    dialect.configure(Live(240, 0.5).session(wanted, SAMPLE_RATE, may_wait=False))
    asked = {"language": "en", "keywords": ("Lotti",), "delay_ms": 240, "interval_ms": 500, "top_logprobs": 5}
    assert dialect.request == LiveRequest(**asked, turn_detection=TurnDetection())
    dialect.configure(Live(recorded=True).session(Wanted(model="live"), SAMPLE_RATE, may_wait=True))
    assert (dialect.request.delay_ms, dialect.request.may_wait) == (2400, True)


def test_live_a_turn_that_fails_is_told_and_is_not_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    committed, item = "input_audio_buffer.committed", "conversation.item.input_audio_transcription"
    doubt = {"code": "loop", "message": "Words may be missing.", "start": 14.0, "end": 16.04}
    events = [
        {"type": committed, "item_id": "a"}, {"type": f"{item}.failed", "item_id": "a", "error": {"message": "No."}},
        {"type": committed, "item_id": "b"}, {"type": f"{item}.delta", "item_id": "b", "delta": "red"},
        {"type": f"{item}.completed", "item_id": "b", "warnings": [doubt]},
    ]  # fmt: skip
    talk, sender = (
        _Talk(iter([json.dumps(event) for event in events]), Wanted(), Screen(quiet=False)),
        SimpleNamespace(),
    )
    said = []
    for sender.commits in (False, True):
        assert not talk.over
        said.append("".join(talk.line(sender)))
    assert (said, talk.over, talk.lost) == (["", "red"], True, True)
    assert [line.split(": ", 1)[1] for line in capsys.readouterr().err.splitlines()] == [
        "some speech is lost: No.", "14.0 to 16.0 s: Words may be missing.",
    ]  # fmt: skip


def test_live_a_server_that_falls_behind_is_said_until_it_has_caught_up(capsys: pytest.CaptureFixture[str]) -> None:
    item, ends = "conversation.item.input_audio_transcription", (1, 4, 20, 29, 45, 50)
    events: list[dict[str, object]] = []
    for number, end in enumerate(ends):
        turn = {"item_id": str(number)}
        events += [{"type": "input_audio_buffer.speech_stopped", "audio_end_ms": 1000 * end, **turn}]
        events += [{"type": f"{item}.completed", **turn}]
    talk = _Talk(iter([json.dumps(event) for event in events]), Wanted(), Screen(quiet=False))
    source, socket = SimpleNamespace(rate=8000, live=True), SimpleNamespace(send=lambda message: None)
    sender = _Sender(source, socket, Progress(disable=True))
    for spoken in (2, 10, 18, 15, 3, 8):  # since the text before
        sender._send(np.zeros(8000 * spoken, np.int16))
        assert "".join(talk.line(sender)) == ""
    assert re.findall(r"(\d+) s behind", capsys.readouterr().err) == ["8", "16", "6"]
    source.live = False
    assert sender.seconds_since(1000) == 0


def scored(token: bytes, share: float = 0.6, *top: tuple[bytes, float]) -> dict[str, object]:
    def entry(data: bytes, of: float) -> dict[str, object]:
        return {"token": data.decode(errors="replace"), "bytes": [*data], "logprob": math.log(of)}

    return {**entry(token, share), "top_logprobs": [entry(*other) for other in top]}


def test_a_token_that_may_be_another_one_is_shown_with_it_and_with_more_of_them_the_larger_the_cutoff() -> None:
    """The distances from the likeliest: 0.48 and 0.98."""
    bravo = scored(b" bravo", 0.6, (b" bravo", 0.6), (b" brave", 0.31), (b" bra", 0.01), (b" ", 0.4), (b"\xe3", 0.5))
    tokens = [scored(b" alpha", 0.9), bravo]
    assert shown("alpha bravo", tokens, 0.1) == "alpha bravo"
    assert shown("alpha bravo", tokens, 0.5) == shown("alpha bravo", tokens, 0.95) == "alpha [bravo|brave]"
    assert shown(" alpha bravo", tokens, 1) == " alpha [bravo|brave|bra]"
    assert shown(" bravo", [scored(b"bravo", 0.6, (b"brave", 0.6))], 0) == " [bravo|brave]"


def test_characters_that_span_tokens_stay_whole_and_replaced_words_stay_replaced() -> None:
    """As the server sends them: a delta has the characters that its tokens complete."""
    other = (b" other", 0.6)
    deltas = [
        {"delta": " na", "logprobs": [scored(b" na\xc3", 0.6, other)]},
        {"delta": "\u00efve", "logprobs": [scored(b"\xaf", 0.6, other), scored(b"ve", 0.6, other)]},
        {"delta": "\u3042", "logprobs": [scored(b"\xe3"), scored(b"\x81", 0.6, (b"\x83", 0.6)), scored(b"\x82")]},
        {"delta": " PK-2", "logprobs": [scored(b" papa", 0.6, other), scored(b" kilo")]},
        {"delta": " red", "logprobs": [scored(b" red", 0.6, other)]},
    ]  # fmt: skip
    assert (
        "".join(shown(delta["delta"], delta["logprobs"], 0.5) for delta in deltas)
        == " na\u00efve\u3042 PK-2 [red|other]"
    )


@pytest.mark.parametrize(("status", "said"), [(404, "one that has /v1/realtime"), (403, "--api-key")])
def test_a_server_without_live_sessions_is_said_in_one_line(status: int, said: str) -> None:
    healthy = answering(b'{"model_state": "loaded"}')
    with Scripted(healthy, refusal(status, "No.")) as server:
        result = called(server.url, "listen", "--live", "--input", str(SHORT.path))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert said in result.stderr


def test_live_text_that_nobody_takes_any_more_ends_it_without_a_word(server: Server) -> None:
    with started(server.url, "listen", "--live", "--input", "-") as process:
        process.stdout.close()
        _, error = process.communicate(samples_of(spoken_twice()))
    assert (process.returncode, error) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
@pytest.mark.parametrize(
    "command", [["listen", "--live", "--input", "-"], ["transcribe", str(SHORT.path)]], ids=" ".join
)
def test_text_that_cannot_be_written_is_said_as_that(server: Server, command: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "cli", *command], cwd=ROOT, env=clean_environment(VOXTRAL_SERVER=server.url),
            input=samples_of(spoken_twice()), stdout=full, stderr=subprocess.PIPE, timeout=100, check=False,
        )  # fmt: skip
    assert (result.returncode, result.stderr) == (1, b"voxtral: stdout: No space left on device.\n")


SOUNDDEVICE = """
import threading
import numpy as np
from types import SimpleNamespace

class PortAudioError(Exception):
    pass

def check_input_settings(device, channels, dtype, samplerate):
    raise PortAudioError("Invalid sample rate")

def query_devices(device, kind):
    if device == "none":
        raise ValueError("No input device matching 'none'")
    return {"default_samplerate": 48000.0}

class InputStream:
    def __init__(self, samplerate, device, channels, dtype, blocksize, callback):
        assert (samplerate, channels, dtype) == (48000, 1, "int16")
        self.blocksize, self.callback, self.stopped = blocksize, callback, threading.Event()

    def start(self):
        threading.Thread(target=self.play, daemon=True).start()

    def play(self):
        samples = np.repeat(np.fromfile("SAMPLES", "<i2"), 3)
        while not self.stopped.wait(0.01):
            block, samples = samples[: self.blocksize], samples[self.blocksize :]
            block = np.pad(block, (0, self.blocksize - len(block)))
            self.callback(block[:, None], len(block), None, SimpleNamespace(input_overflow=False))

    def stop(self):
        self.stopped.set()

    close = stop
"""


def test_a_microphone_is_heard_until_ctrl_c_at_the_rate_that_it_has(server: Server, tmp_path: Path) -> None:
    samples = tmp_path / "samples.raw"
    samples.write_bytes(samples_of(spoken_twice()))
    (tmp_path / "sounddevice.py").write_text(SOUNDDEVICE.replace("SAMPLES", str(samples)))
    with started(server.url, "listen", "--quiet", PYTHONPATH=str(tmp_path)) as process:
        heard = process.stdout.readline().decode()
        process.send_signal(signal.SIGINT)
        heard += process.stdout.read().decode()
        assert (process.wait(60), process.stderr.read()) == (130, b"")
    assert_heard(f"{SHORT.words} {OTHER.words}", " ".join(heard.split()), share=0.34)


@pytest.mark.parametrize(
    ("library", "said"),
    [
        ("raise ImportError", "pip install -r requirements-cli.txt"),
        ("raise OSError('PortAudio library not found')", "apt install libportaudio2"),
        (SOUNDDEVICE, "no microphone (No input device matching 'none')"),
    ],
    ids=["no package", "no library", "no microphone"],
)
def test_a_missing_microphone_is_said_in_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, said: str
) -> None:
    (tmp_path / "sounddevice.py").write_text(library)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    result = called(server.url, "listen", "--device", "none")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert said in result.stderr


runs_of_frames = st.lists(st.tuples(st.booleans(), st.integers(1, 50)), min_size=1, max_size=8)


@settings(max_examples=50)
@given(runs=runs_of_frames, longest=st.sampled_from([1, 2.5, 20]), block=st.integers(300, 5000), seed=st.integers(0))
def test_utterances_are_stretches_of_the_sound_and_hold_all_that_is_loud(
    runs: list[tuple[bool, int]], longest: float, block: int, seed: int
) -> None:
    size = SAMPLE_RATE * FRAME_MS // 1000
    loud = np.concatenate([np.full(count, is_loud) for is_loud, count in runs])
    random = np.random.default_rng(seed)
    peaks = np.where(loud, 20_000, random.integers(1, 20, len(loud)))
    sound = (np.repeat(peaks, size) * random.uniform(-1, 1, len(loud) * size)).astype(np.int16)
    utterances = Utterances(SAMPLE_RATE, longest)
    cut = [u for at in range(0, len(sound), block) for u in utterances.feed(sound[at : at + block])]
    cut += utterances.finish()
    assert all(np.abs(utterance).max() > 20 and len(utterance) <= longest * SAMPLE_RATE for utterance in cut)
    assert sum(np.count_nonzero(np.abs(utterance) > 20) for utterance in cut) == np.count_nonzero(np.abs(sound) > 20)
    rest = sound.tobytes()
    for utterance in cut:
        _, found, rest = rest.partition(utterance.tobytes())
        assert found


# The server as it is, and as it should not be.


def test_models_and_health_are_told_in_lines(server: Server) -> None:
    row, _ = called(server.url, "models").stdout.splitlines()
    assert row.split()[:2] == ["voxtral-demo", "loaded"]
    assert "whisper-1" in row.split()
    health = called(f"{server.url}/v1/", "health")
    assert health.exit_code == 0
    assert health.stdout.startswith("healthy: voxtral-demo is loaded, cpu\n")


def test_a_server_that_is_not_there_is_said_once_with_how_to_start_it() -> None:
    result = run_cli("http://127.0.0.1:1", "transcribe", str(SHORT.path), str(OTHER.path))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "./start_server.sh" in result.stderr


class Scripted:
    """A server that answers each request with the next of `answers`; what it was sent is in the lists."""

    def __init__(self, *answers: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.bodies: list[bytes] = []
        self.keys: list[str | None] = []
        self.ids: list[str | None] = []
        self.paths: list[str] = []
        self.received: queue.Queue[bytes] = queue.Queue()
        left = list(answers)
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                scripted.paths.append(self.path)
                scripted.ids.append(self.headers["X-Request-Id"])
                scripted.keys.append(self.headers["Authorization"])
                scripted.bodies.append(b"".join(scripted.body(self)))
                self.close_connection = True
                (left.pop(0) if left else refusal(404, "No more."))(self)

            do_GET = do_POST

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def body(self, request: BaseHTTPRequestHandler) -> Iterator[bytes]:
        """Pieces of a chunked body, which are also put into `received` as they come."""
        while request.headers["Transfer-Encoding"] and (size := int(request.rfile.readline(), 16)):
            self.received.put(piece := request.rfile.read(size))
            request.rfile.readline()
            yield piece

    def __enter__(self) -> Scripted:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *details: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def answer(request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)
    request.wfile.flush()


def refusal(status: int, message: str, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda request: answer(request, status, json.dumps({"error": {"message": message}}).encode(), **headers)


def answering(body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda request: answer(request, 200, body)


def event(**payload: object) -> bytes:
    return f"data: {json.dumps(payload)}\n\n".encode()


HELLO = event(type="transcript.text.delta", delta="hello")
DONE = event(type="transcript.text.done", warnings=[])


def stream(*events: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    return answering(b"".join(events))


def test_text_is_printed_before_the_answer_has_ended() -> None:
    printed = threading.Event()

    def in_two_parts(request: BaseHTTPRequestHandler) -> None:
        answer(request, 200, HELLO)
        assert printed.wait(60)
        request.wfile.write(DONE)

    with Scripted(in_two_parts) as server, started(server.url, "transcribe", str(SHORT.path), "--debug") as process:
        assert process.stdout.read(5) == b"hello"
        printed.set()
        assert process.stdout.read() == b"\n"
        assert b"/v1/audio/transcriptions" in process.stderr.read()


def test_a_pipe_is_sent_while_it_comes() -> None:
    with (
        Scripted(answering(b"hello\n")) as server,
        started(server.url, "transcribe", "--stdin", "--format", "srt") as process,
    ):
        process.stdin.write(bytes(100_000))
        process.stdin.flush()
        received = 0
        while received < 100_000:
            received += len(server.received.get(timeout=60))
        process.stdin.close()
        assert process.stdout.read() == b"hello\n"


def test_a_busy_server_is_asked_again_with_the_whole_recording_and_the_key() -> None:
    busy = refusal(429, "Too many.", Retry_After="1")
    with Scripted(busy, stream(HELLO, DONE)) as server:
        result = called(server.url, "transcribe", str(SHORT.path), VOXTRAL_API_KEY="secret")
        assert server.keys == ["Bearer secret"] * 2
        assert all(SHORT.data in body for body in server.bodies)
    assert (result.exit_code, result.stdout) == (0, "hello\n")
    assert "the server is busy, next try in 1 s" in result.stderr


def test_where_words_may_be_missing_is_told_beside_the_text() -> None:
    warning = {"code": "audio_incomplete", "message": "Words may be missing.", "start": 14.0, "end": 16.04}
    with Scripted(stream(HELLO, event(type="transcript.text.done", warnings=[warning]))) as server:
        result = called(server.url, "transcribe", str(SHORT.path))
    assert (result.exit_code, result.stdout) == (0, "hello\n")
    assert f"{SHORT.path}: 14.0 to 16.0 s: Words may be missing." in result.stderr


def test_where_words_may_be_missing_is_told_for_formats_without_a_place_for_it() -> None:
    warning = {"code": "loop", "message": "Words may be missing.", "start": 14.0, "end": 16.04}
    cues = b"1\n00:00:14,000 --> 00:00:16,000\nhello\n\n"
    answers = [
        lambda request: answer(request, 200, cues, x_voxtral_warnings=json.dumps([warning])), answering(cues),
        lambda request: answer(request, 200, cues, x_voxtral_warnings="strange"),
    ]  # fmt: skip
    with Scripted(*answers) as server:
        told, silent, strange = (called(server.url, "transcribe", str(SHORT.path), "-f", "srt") for _ in range(3))
    assert (told.exit_code, told.stdout) == (silent.exit_code, silent.stdout) == (0, cues.decode())
    assert f"{SHORT.path}: 14.0 to 16.0 s: Words may be missing." in told.stderr
    assert silent.stderr == ""
    assert (strange.exit_code, strange.stdout) == (1, cues.decode())


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (stream(HELLO, event(error={"message": "The model\nis gone."})), "The model is gone."),
        (stream(HELLO), "broke before the answer was whole"),
        (refusal(401, "A key is missing."), "A key is missing. On the command line: --api-key or VOXTRAL_API_KEY."),
        (lambda request: answer(request, 404, b"<html>"), "answered 404 Not Found"),
        (stream(b"data: hello\n\n"), "is not Voxtral Local"),
    ],
    ids=["error in the stream", "stream cut", "no key", "no such page", "another server"],
)
def test_what_goes_wrong_at_the_server_is_one_line_and_never_text(
    script: Callable[[BaseHTTPRequestHandler], None], said: str
) -> None:
    with Scripted(script) as server:
        result = called(server.url, "transcribe", str(SHORT.path))
    assert result.exit_code == 1
    assert result.stdout in ("", "hello\n")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr


def test_ctrl_c_ends_a_transcription_without_a_trace() -> None:
    command = ["transcribe", "--stdin", "--format", "json", "--quiet"]
    with Scripted(stream()) as server, started(server.url, *command) as process:
        process.stdin.write(bytes(1000))
        process.stdin.flush()
        server.received.get(timeout=60)
        process.send_signal(signal.SIGINT)
        assert (process.wait(60), process.stderr.read()) == (130, b"")
