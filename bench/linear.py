"""How long one linear layer of Voxtral Mini 3B takes in each kind of weights, by the rows that it is given.

    python -m bench.linear [--rows 1,4,8,16,32,383] [--rounds 9] [--threads 2]

Kinds take turns. Medians in milliseconds; 1 row is a decode step of one chunk, 383 rows the prompt of a chunk of 30 s.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from bench.peers import middle, numbers, table
from engine.linear import FloatLinear, Int4Linear, Int8Linear, PackedLinear

OUTPUTS, INPUTS = 8192, 3072
KINDS = ("float32, PyTorch", "float32", "bfloat16, PyTorch", "bfloat16", "int8", "int4")


def packed(layer: PackedLinear, weight: torch.Tensor) -> PackedLinear:
    layer.pack(weight)
    return layer


@torch.inference_mode()
def measure(rows: tuple[int, ...], rounds: int) -> str:
    linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    weight, short = linear.weight.data, linear.weight.data.bfloat16()
    packed_short = packed(FloatLinear(linear, torch.bfloat16), weight)
    layers: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "float32, PyTorch": linear,
        "float32": packed(FloatLinear(linear, torch.float32), weight),
        "bfloat16, PyTorch": lambda inputs: F.linear(inputs.bfloat16(), short),
        "bfloat16": lambda inputs: packed_short(inputs.bfloat16()),
        "int8": packed(Int8Linear(linear), weight),
        "int4": packed(Int4Linear(linear), weight),
    }
    times: dict[tuple[int, str], list[float]] = {(count, kind): [] for count in rows for kind in KINDS}
    for count in rows:
        for _ in range(rounds + 1):
            for kind in KINDS:
                inputs = torch.randn(count, INPUTS)
                started = time.perf_counter()
                layers[kind](inputs)
                times[count, kind].append(1000 * (time.perf_counter() - started))
    medians = [(count, *(middle(times[count, kind][1:]) for kind in KINDS)) for count in rows]
    return table(("rows", *(f"{kind}, ms" for kind in KINDS)), medians)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=numbers, default=(1, 4, 8, 16, 32, 383))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(measure(args.rows, args.rounds))


if __name__ == "__main__":
    main()
