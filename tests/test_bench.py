"""The benches run, small; what they measure is nobody's business here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import (
    accuracy,
    alignment,
    checkpoint,
    endless,
    gpu,
    latency,
    linear,
    live,
    memory,
    overhead,
    quality,
    realtime,
    throughput,
)
from bench.peers import arguments, numbers
from chunking import Chunk
from config import DEMO_ALIGNER, DEMO_MODEL
from engine.backends import load_aligner, load_backend
from engine.backends.base import LoadOptions
from tests.serving import Server
from tests.speech import SAMPLE_RATE, clips_of
from tools.demo_speech import Recording, Utterance
from voice_activity import Span


def rows(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[2:]]


def test_throughput_compares_peers_on_the_same_files(server: Server, tmp_path: Path) -> None:
    other = server.url.replace("127.0.0.1", "localhost")
    args = arguments("throughput").parse_args([server.url, other, "--requests", "1,3", "--rounds", "1"])
    args.plot = tmp_path / "curves.svg"
    measured = rows(asyncio.run(throughput.measure(args)))
    assert [row[0] for row in measured] == ["1", "1", "3", "3"]
    assert "times real time" in args.plot.read_text()
    assert all(float(row[3]) > 0 for row in measured)
    assert [float(row[4]) for row in measured if row[1] in server.url] == [1, 1]


def test_overhead_is_what_the_model_waits(server: Server) -> None:
    args = arguments("overhead").parse_args([server.url, "--requests", "2", "--rounds", "1"])
    ((requests, wall, busy, share),) = rows(asyncio.run(overhead.measure(args)))
    assert requests == "2"
    assert 0 < float(busy) < float(wall)
    assert 0 < float(share) < 100


def test_latency_has_the_crowd_and_the_long_file(server: Server) -> None:
    args = arguments("latency").parse_args([server.url, "--requests", "2", "--rounds", "1"])
    args.long = 20.0
    measured = rows(asyncio.run(latency.measure(args)))
    assert [row[0] for row in measured] == ["2 at once", "beside 20 s"]
    assert all(float(row[2]) <= float(row[4]) for row in measured)


def test_live_has_the_lag_of_every_turn(server: Server) -> None:
    args = live.arguments().parse_args([server.url, "--sessions", "2", "--seconds", "3"])
    ((sessions, turns, *lags),) = rows(asyncio.run(live.measure(args)))
    assert (sessions, int(turns) >= 2) == ("2", True)
    assert all(float(lag) > 0 for lag in lags)


@pytest.mark.parametrize("options", [[], ["--uncommitted"]])
def test_endless_has_what_was_wrong_in_each_stretch(server: Server, options: list[str]) -> None:
    args = endless.arguments().parse_args([server.url, "--minutes", "1", *options])
    ((minutes, words, wrong, *_),) = rows(asyncio.run(endless.measure(args)))
    assert (minutes, int(words) > 50) == ("1", True)
    assert float(wrong) < 6


def test_a_refused_request_ends_the_bench_and_says_why(server: Server) -> None:
    args = arguments("throughput").parse_args([server.url, "--model", "nothing", "--rounds", "1"])
    args.plot = None
    with pytest.raises(RuntimeError, match="model_not_found"):
        asyncio.run(throughput.measure(args))


def clip_bank() -> list[Utterance]:
    """Clips as if espeak-ng had said them; their words are taken to be equally long."""
    spoken = [(c.words.split(), c.samples()) for c in clips_of("trained voice")]
    return [
        Utterance(tuple(words), (samples * 32767).astype(np.int16), "clip",
                  tuple(len(samples) * i // len(words) for i in range(len(words))))
        for words, samples in spoken
    ]  # fmt: skip


def test_quality_has_a_row_for_each_recording(server: Server) -> None:
    args = quality.parser().parse_args([server.url, "--minutes", "0.4", "--long", "0.6", "--chunk", "15"])
    *spoken, nobody = rows(quality.measure(args, clip_bank()))
    assert [row[0].split(",")[0] for row in spoken] == ["plain", "quiet", "noisy", "long"]
    for row in spoken:
        assert float(row[2]) >= 20
        assert float(row[3]) < 10  # some of these words are said to be where there is a pause
        assert float(row[4]) < 25
    assert nobody[2:5] == ["0", "0", ""]
    assert nobody[12] == "0"


def test_quality_says_how_many_words_no_chunk_has_whole() -> None:
    samples = np.full(6 * SAMPLE_RATE, 0.1, np.float32)
    recording = Recording(samples, tuple("abcdef"), tuple((i * SAMPLE_RATE, (i + 1) * SAMPLE_RATE) for i in range(6)))

    def chunk(*seconds: tuple[float, float]) -> Chunk:
        spans = [Span(*(int(second * SAMPLE_RATE) for second in (a, b, a, b))) for a, b in seconds]
        return Chunk(0, 0, samples, tuple(spans))

    assert quality.torn(recording, [chunk((0, 2.02)), chunk((2.02, 6))]) == 0
    assert quality.torn(recording, [chunk((0, 1.5)), chunk((1.5, 6))]) == 1
    assert quality.torn(recording, [chunk((0.2, 1.5)), chunk((1.5, 3), (3, 4), (4.9, 5.9))]) == 4


def test_quality_tells_what_is_wrong_with_a_word() -> None:
    said = tuple("open the window at four and close the table".split())
    recording = Recording(np.zeros(9 * 16_000), said, tuple((i * 16_000, (i + 1) * 16_000) for i in range(9)))
    heard = "Open the window, the window at purple 4 or close table.".split()
    words = [quality.normal(word) for word in heard]
    starts = [80.0, *(1000.0 * second for second in (1, 2, 2, 2, 3, 3, 4, 5, 6, 8))]
    judgement = quality.Judgement()
    for _ in range(2):
        judgement.add(recording, quality.Heard(words, starts), cuts=[(6900.0, 7100.0)])
    assert judgement.near == quality.Counts(words=8, wrong=4, lost=2, doubled=0)
    assert judgement.elsewhere == quality.Counts(words=10, wrong=0, lost=0, doubled=4)
    count, torn, wrong, *_, invented, median, most = judgement.row()
    assert (count, torn, round(wrong, 1), invented) == (18, 0, round(500 / 9, 1), 2)
    assert median == 0
    assert most == 80


def test_memory_starts_its_own_server() -> None:
    args = memory.argparse.Namespace(minutes=numbers("2"), spoken=10, options=["--demo"])
    ((minutes, before, *_, speed),) = rows(memory.measure(args))
    assert minutes == "2"
    assert float(before) > 100
    assert float(speed) > 0


def test_accuracy_finds_float32_equal_to_itself_and_int8_close() -> None:
    printed = accuracy.measure(DEMO_MODEL, ["float32", "float32", "int8"], steps=4)
    (_, cosine, error, same, *_), (_, again, no_error, *_), (_, close, *_) = rows(printed)
    assert (cosine, error, same) == ("1.00000", "0", "1")
    assert (again, no_error) == ("1.00000", "0")
    assert 0.99 < float(close) < 1


def test_both_alignments_have_their_costs_and_errors() -> None:
    backend = load_backend("transformers", DEMO_MODEL, LoadOptions("cpu", "auto"))
    aligner = load_aligner(DEMO_ALIGNER, "cpu")
    ((seconds, tokens, *parts, share, ctc),) = rows(alignment.costs(backend, aligner, (5,), tokens=3, rounds=1))
    assert (seconds, tokens) == ("5", "15")
    assert all(float(part) > 0 for part in (*parts, ctc))
    assert 0 < float(share.rstrip("%")) < 100
    found = rows(alignment.errors(backend, aligner, clips_of("short")))
    assert [(name, words) for name, words, *_ in found] == [("attention", found[0][1]), ("CTC", found[0][1])]
    assert all(0 < float(middle) < 80 for _, _, middle, *_ in found)


def test_linear_times_every_kind_of_weights() -> None:
    measured = rows(linear.measure((1,), rounds=1))
    assert len(measured) == 1
    assert all(float(cell) > 0 for cell in measured[0][1:])


def test_gpu_compares_clips_at_once_with_generate() -> None:
    args = gpu.arguments().parse_args("--device cpu --size tiny --clips 1,2 --tokens 3 --rounds 1 --seconds 1".split())
    measured = rows(gpu.measure(args))
    assert [row[0] for row in measured] == ["1", "2"]
    assert all(float(cell) > 0 for row in measured for cell in row)


def test_realtime_times_steps_and_counts_guesses(tmp_path: Path) -> None:
    checkpoint.write_checkpoint(tmp_path, "tiny-realtime", "cpu")
    args = realtime.arguments().parse_args([str(tmp_path), *"--streams 1,2 --steps 1 --seconds 6".split()])
    steps, recording = realtime.measure(args).split("\n\n")
    assert [row[0] for row in rows(steps)] == ["1", "2"]
    assert all(float(cell) > 0 for row in rows(steps) for cell in row)
    ((pads, _, accepted, saved),) = rows(recording)
    assert pads == "0.75"
    assert 0 < float(accepted) < 100
    assert float(saved) > 20


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA card")
def test_gpu_says_in_one_line_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["bench.gpu"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
