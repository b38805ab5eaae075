"""The benches run, small; what they measure is nobody's business here."""

from __future__ import annotations

import asyncio

import pytest

from bench import accuracy, latency, linear, memory, throughput
from bench.peers import arguments, numbers
from config import DEMO_MODEL
from tests.serving import Server


def rows(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[2:]]


def test_throughput_compares_peers_on_the_same_files(server: Server) -> None:
    other = server.url.replace("127.0.0.1", "localhost")
    args = arguments("throughput").parse_args([server.url, other, "--requests", "1,3", "--rounds", "1"])
    measured = rows(asyncio.run(throughput.measure(args)))
    assert [row[0] for row in measured] == ["1", "1", "3", "3"]
    assert all(float(row[3]) > 0 for row in measured)
    assert [float(row[4]) for row in measured if row[1] in server.url] == [1, 1]


def test_latency_has_the_crowd_and_the_long_file(server: Server) -> None:
    args = arguments("latency").parse_args([server.url, "--requests", "2", "--rounds", "1"])
    args.long = 20.0
    measured = rows(asyncio.run(latency.measure(args)))
    assert [row[0] for row in measured] == ["2 at once", "beside 20 s"]
    assert all(float(row[2]) <= float(row[4]) for row in measured)


def test_a_refused_request_ends_the_bench_and_says_why(server: Server) -> None:
    args = arguments("throughput").parse_args([server.url, "--model", "nothing", "--rounds", "1"])
    with pytest.raises(RuntimeError, match="model_not_found"):
        asyncio.run(throughput.measure(args))


def test_memory_starts_its_own_server() -> None:
    args = memory.argparse.Namespace(minutes=numbers("1"), options=["--demo"])
    ((minutes, before, *_, speed),) = rows(memory.measure(args))
    assert minutes == "1"
    assert float(before) > 100
    assert float(speed) > 0


def test_accuracy_finds_float32_equal_to_itself_and_int8_close() -> None:
    printed = accuracy.measure(DEMO_MODEL, ["float32", "float32", "int8"], steps=4)
    (_, cosine, error, same, *_), (_, again, no_error, *_), (_, close, *_) = rows(printed)
    assert (cosine, error, same) == ("1.00000", "0", "1")
    assert (again, no_error) == ("1.00000", "0")
    assert 0.99 < float(close) < 1


def test_linear_times_every_kind_of_weights() -> None:
    measured = rows(linear.measure((1,), rounds=1))
    assert len(measured) == 1
    assert all(float(cell) > 0 for cell in measured[0][1:])
