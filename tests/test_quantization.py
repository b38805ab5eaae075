"""Quantized layers against the layers they replace, and the demo model in 8 and 4 bits against itself in float32."""

from __future__ import annotations

import asyncio
import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import VoxtralForConditionalGeneration

from config import DEMO_MODEL
from engine import linear as linear_module
from engine import native
from engine.backends import load_backend, memory_needed
from engine.backends.base import LoadOptions
from engine.core import Job, Sampling
from engine.linear import (
    GROUP,
    TILE,
    TILE_4,
    FloatLinear,
    Int4Linear,
    Int8Linear,
    PackedLinear,
)
from engine.native import supported
from engine.tokenizer import TextDecoder
from engine.weights import load_packed
from engine.worker import Worker
from tests.speech import clips_of, word_error_rate

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not supported(), reason="quantization needs an x86 CPU"),
]
HEARD = clips_of("trained voice", "unheard voice", "loudness", "short", "long pauses", "half a minute")


def packed(kind: type[PackedLinear], linear: torch.nn.Linear, cpu: str = native.THIS_CPU) -> PackedLinear:
    quantized = kind(linear)
    quantized.cpu = cpu
    quantized.pack(linear.weight.data)
    return quantized


def relative_error(quantized: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """For each row (rows,): the length of the difference by the length of the exact one."""
    return (quantized - exact).norm(dim=-1) / exact.norm(dim=-1)


@given(rows=st.integers(1, 200), seed=st.integers(0, 2**31), bias=st.booleans())
@torch.inference_mode()
def test_a_quantized_layer_gives_nearly_what_the_layer_gave(rows: int, seed: int, bias: bool) -> None:
    torch.manual_seed(seed)
    linear = torch.nn.Linear(128, 192, bias=bias)
    inputs = torch.randn(rows, 128)
    exact = linear(inputs)
    assert relative_error(packed(Int8Linear, linear)(inputs), exact).max() < 0.05
    assert relative_error(packed(Int4Linear, linear)(inputs), exact).max() < 0.2


@torch.inference_mode()
def test_a_row_of_outliers_does_not_spoil_its_neighbours() -> None:
    torch.manual_seed(0)
    layer, inputs = packed(Int8Linear, torch.nn.Linear(128, 64)), torch.randn(8, 128)
    alone = layer(inputs[:1])
    inputs[1:] *= 1000
    assert torch.equal(layer(inputs)[:1], alone)


@torch.inference_mode()
def test_large_weights_and_large_activations_do_not_overflow() -> None:
    """All at their limits and of one sign: the largest sums that the integer kernels must hold."""
    linear = torch.nn.Linear(256, 64, bias=False)
    torch.nn.init.constant_(linear.weight, 0.5)
    inputs = torch.full((4, 256), 3.0)
    torch.testing.assert_close(packed(Int8Linear, linear)(inputs), linear(inputs), rtol=0.01, atol=0)


@torch.inference_mode()
def test_layers_take_no_rows_and_rows_in_rows_but_no_other_type() -> None:
    linear = torch.nn.Linear(64, 64)
    layers = (packed(partial(FloatLinear, dtype=torch.float32), linear), packed(Int8Linear, linear))
    for layer in (*layers, packed(Int4Linear, linear)):
        assert layer(torch.zeros(0, 64)).shape == (0, 64)
        inputs = torch.randn(2, 3, 64)
        assert torch.equal(layer(inputs).flatten(0, 1), layer(inputs.flatten(0, 1)))
        with pytest.raises(ValueError, match=r"a layer in torch\.float32 was given torch\.bfloat16"):
            layer(inputs.bfloat16())


@torch.inference_mode()
def test_silence_stays_silent() -> None:
    layer = packed(Int8Linear, torch.nn.Linear(64, 64, bias=False))
    assert not layer(torch.zeros(3, 64)).any()


def runs(cpu: str) -> bool:
    """Whether this CPU has the instructions that LLVM expects of one of that name."""
    widest = torch.backends.cpu.get_cpu_capability()
    return {"x86_64_v4": widest == "AVX512", "x86_64_v3": widest in ("AVX2", "AVX512")}.get(cpu, True)


def unpacked_int4(layer: Int4Linear) -> torch.Tensor:
    """The weights (outputs, inputs) that a layer has stored."""
    pairs = torch.stack([layer.packed & 15, layer.packed >> 4])  # (2, tiles, groups, pairs, TILE_4, 4)
    levels = pairs.permute(1, 4, 2, 3, 0, 5).reshape(-1, TILE_4, layer.in_features // GROUP, GROUP)
    scales, offsets = layer.scales.float().transpose(1, 3).unbind(2)  # (tiles, TILE_4, groups)
    return ((levels - 8.0) * scales[..., None] + offsets[..., None]).flatten(0, 1).flatten(1)


def unpacked_int8(layer: Int8Linear) -> torch.Tensor:
    return layer.packed.float().transpose(1, 2).reshape(layer.out_features, layer.in_features) * layer.scales[:, None]


ALL_CPUS = pytest.mark.parametrize("cpu", [native.THIS_CPU, "x86_64_v4", "x86_64_v3", "x86_64"])


@ALL_CPUS
@given(
    sizes=st.tuples(st.integers(1, 420), st.integers(1, 700), st.integers(1, 3)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), bias=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
@torch.inference_mode()
def test_floats_are_multiplied_as_exactly_as_their_type_allows(cpu: str, sizes, dtype, bias: bool, seed: int) -> None:
    """`sizes`: rows, pairs of inputs and tiles of outputs."""
    rows, pairs, tiles = sizes
    if not runs(cpu):
        pytest.skip(f"this CPU is no {cpu}")
    torch.manual_seed(seed)
    linear = torch.nn.Linear(2 * pairs, TILE * tiles, bias=bias).to(dtype)
    layer = FloatLinear(linear, dtype)
    layer.cpu = cpu
    layer.pack(linear.weight.data.float())
    inputs = torch.randn(2 * pairs, rows).to(dtype).T  # whose rows do not lie together
    exact = inputs.double() @ linear.weight.data.double().T + (linear.bias.double() if bias else 0)
    products = layer(inputs)
    assert products.dtype == dtype
    assert relative_error(products.double(), exact).max() < (2e-6 if dtype == torch.float32 else 4e-3)


@ALL_CPUS
@pytest.mark.parametrize(
    ("kind", "unpacked", "tile"), [(Int8Linear, unpacked_int8, TILE), (Int4Linear, unpacked_int4, TILE_4)]
)
@given(
    sizes=st.tuples(st.integers(1, 110), st.integers(1, 5), st.integers(1, 5)), large=st.floats(1e-3, 1e3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), bias=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
@torch.inference_mode()
def test_kernels_multiply_rightly_with_the_instructions_of_any_cpu(kind, unpacked, tile, cpu: str, **drawn) -> None:
    """`drawn`: rows, tiles and groups; how large the activations are, their type, and whether there is a bias."""
    if not runs(cpu):
        pytest.skip(f"this CPU is no {cpu}")
    (rows, tiles, groups), large, dtype = drawn["sizes"], drawn["large"], drawn["dtype"]
    torch.manual_seed(drawn["seed"])
    linear = torch.nn.Linear(groups * GROUP, tiles * tile, bias=drawn["bias"]).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        if cpu != native.THIS_CPU:
            patch.setattr(linear_module, "WEIGHT_LIMIT", 63)  # none of the others has VNNI
        layer = packed(kind, linear, cpu)
    inputs = (large * torch.randn(rows, groups * GROUP)).to(dtype)
    step = inputs.float().abs().amax(1, keepdim=True) / 127
    expected = ((inputs.float() / step).round() * step) @ unpacked(layer).T
    expected += linear.bias.float() if drawn["bias"] else 0
    products = layer(inputs)
    assert products.dtype == dtype
    # A level that lies in the middle may be rounded either way; bfloat16 keeps 8 bits of what comes out.
    assert relative_error(products.float(), expected).max() < (0.02 if dtype == torch.float32 else 0.025)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(large=st.floats(1e-6, 1e4), away=st.floats(-4, 4), seed=st.integers(0, 2**31))
@torch.inference_mode()
def test_packed_weights_are_within_half_a_level_of_what_they_were(dtype, large: float, away: float, seed: int) -> None:
    """`away`: how far from zero the weights lie, where groups of 4 bits have to follow them."""
    torch.manual_seed(seed)
    linear = torch.nn.Linear(3 * GROUP, TILE, bias=False).to(dtype)
    linear.weight.data = (large * (torch.randn(TILE, 3 * GROUP) + away)).to(dtype)
    weight = linear.weight.data.float()
    eight, four = packed(Int8Linear, linear), packed(Int4Linear, linear)
    assert ((unpacked_int8(eight) - weight).abs() <= 0.501 * eight.scales[:, None]).all()
    scales, offsets = (each.flatten(0, 1)[..., None] for each in four.scales.float().transpose(1, 3).unbind(2))
    distance = (unpacked_int4(four) - weight).abs().view(-1, 3, GROUP)
    # Scales and offsets have 8 bits themselves, of which the greatest and least of a group feel the most.
    assert (distance <= 0.5 * scales + (8 * scales + offsets.abs()) / 128).all()


def transcripts(quantization: str) -> list[str]:
    backend = load_backend("transformers", DEMO_MODEL, LoadOptions("cpu", "float32", 8, quantization))
    worker = Worker(backend)

    async def hear(samples) -> str:
        stream = worker.submit(Job(backend.tokenizer.transcription_prompt("en"), (samples,), 300, Sampling()), "test")
        decoder = TextDecoder()
        return "".join([decoder.add(backend.tokenizer.token_bytes(token.id)) async for token in stream])

    async def hear_all() -> list[str]:
        return await asyncio.gather(*(hear(clip.samples()) for clip in HEARD))

    try:
        return asyncio.run(hear_all())
    finally:
        worker.close()


@pytest.fixture(scope="module")
def exact_error_rate() -> float:
    return word_error_rate([(clip.words, text) for clip, text in zip(HEARD, transcripts("none"), strict=True)])


@pytest.mark.parametrize(("quantization", "more_errors"), [("int8", 0.003), ("int4", 0.01)])
def test_the_demo_model_hears_as_well_in_fewer_bits(
    exact_error_rate: float, quantization: str, more_errors: float
) -> None:
    texts = transcripts(quantization)
    error_rate = word_error_rate([(clip.words, text) for clip, text in zip(HEARD, texts, strict=True)])
    assert error_rate <= exact_error_rate + more_errors


def test_loaded_weights_take_as_much_as_was_foreseen() -> None:
    for quantization in ("none", "int8", "int4"):
        options = LoadOptions("cpu", "float32", 8, quantization)
        backend = load_backend("transformers", DEMO_MODEL, options)
        assert math.isclose(memory_needed(DEMO_MODEL, options), backend.memory_bytes, rel_tol=0.1)


def test_layers_of_sizes_that_no_kernel_takes_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for tile, kind in ((64, FloatLinear), (3 * 2048, torch.nn.Linear)):
        monkeypatch.setattr(FloatLinear, "multiples", (2, tile))
        model = load_packed(VoxtralForConditionalGeneration, DEMO_MODEL, "none", torch.float32)
        assert type(model.lm_head) is kind
        assert model.lm_head(torch.zeros(1, 256)).shape == (1, 2048)


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((DEMO_MODEL / "config.json").read_bytes())
    weights = load_file(DEMO_MODEL / "model.safetensors")
    del weights["language_model.lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="the checkpoint lacks lm_head"):
        load_packed(VoxtralForConditionalGeneration, tmp_path, "int8", torch.float32)
    save_file({"language_model.model.layers.99.mlp.up_proj.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="which Voxtral has not"):
        load_packed(VoxtralForConditionalGeneration, tmp_path, "int8", torch.float32)


def test_a_kernel_that_could_not_be_compiled_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "ziglang", None)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="pip install"):
                native.library("cached_attention", "x86_64_v3")
    assert native.library("cached_attention", "x86_64_v3") is native.library("cached_attention", "x86_64_v3")
