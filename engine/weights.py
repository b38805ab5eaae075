"""Weights from a checkpoint into a model of packed layers, one tensor at a time.

transformers reads a whole checkpoint before anything could be packed, which takes twice the memory of the file. Here
a tensor is read, packed and forgotten before the next, so loading needs little more than what it leaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import apply_renamings

from engine import native
from engine.kept_weights import KeptWeights
from engine.linear import FloatLinear, Int4Linear, Int8Linear, PackedLinear
from engine.pages import map_at_once, trim_heap

EMBEDDING = "embed_tokens.weight"
NARROW = ".ada_rms_norm."  # layers of 32 channels, which say to the 4B's decoder how long it may wait


def load_packed(
    kind: type[PreTrainedModel], folder: Path, quantization: str, dtype: torch.dtype, *, keep: bool = False
) -> PreTrainedModel:
    """The Voxtral of class `kind` in `folder` with packed linear layers, everything else in `dtype`.

    With int4 the encoder and the output layer have 8: the encoder takes its time by arithmetic and not by reading,
    and the choice of a token is made among 131,072 close ones. Token embeddings stay as they are on disk, for only some
    rows of them are ever read. `keep`: quantized weights are kept on disk, or found there (engine.kept_weights). Raises
    ValueError for weights that are missing or unknown.
    """
    config = kind.config_class.from_pretrained(folder, local_files_only=True)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = kind(config)
    _compute_buffers(model)
    _pack_linears(model, quantization, dtype)
    kept = KeptWeights(folder, quantization, dtype) if keep and quantization != "none" else None
    if not (kept and kept.restore(model) and not _missing(model)):
        _fill(model, folder, dtype)
        if missing := _missing(model):
            raise ValueError(f"the checkpoint lacks {', '.join(missing[:3])}")
        if kept:
            kept.save(model)
    for kernel in {module.kernel for module in model.modules() if isinstance(module, PackedLinear)}:
        native.prepare(kernel)
    return model.eval()


def _fill(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    tied = _tied_layers(model)
    renamings = get_model_conversion_mapping(model)
    for name, tensor in _tensors(folder):
        name = apply_renamings(name, renamings)
        _put(model, name, tensor, dtype)
        if name in tied:
            _put(model, tied[name], tensor, dtype)
    trim_heap()


def _missing(model: PreTrainedModel) -> list[str]:
    missing = [name for name, value in [*model.named_parameters(), *model.named_buffers()] if value.is_meta]
    return missing + [name for name, module in model.named_modules() if _unpacked(module)]


def _compute_buffers(model: PreTrainedModel) -> None:
    """What is computed and not stored: rotations, and the sines by which the 4B is told of its delay."""
    inner = model.model
    for stack in (inner.language_model, inner.audio_tower):
        if hasattr(stack, "rotary_emb"):
            stack.rotary_emb = type(stack.rotary_emb)(stack.config)
    if hasattr(inner, "time_embedding"):
        inner.time_embedding = type(inner.time_embedding)(model.config.text_config.hidden_size)


def _tied_layers(model: PreTrainedModel) -> dict[str, str]:
    """Stored weights that stand for those of another layer, too: the 4B's embeddings for its output layer."""
    tied = model._tied_weights_keys if getattr(model.config, "tie_word_embeddings", False) else None
    return {source: target for target, source in (tied or {}).items()}


def _pack_linears(model: PreTrainedModel, quantization: str, dtype: torch.dtype) -> None:
    """All whose sizes the kernels take, which are all of a real model's."""
    for name, linear in [*model.named_modules()]:
        if not isinstance(linear, torch.nn.Linear) or NARROW in name:
            continue
        if quantization == "none" and FloatLinear.takes(linear):
            model.set_submodule(name, FloatLinear(linear, dtype))
        elif quantization != "none":
            fewest = Int4Linear if quantization == "int4" and ".language_model.layers." in name else Int8Linear
            if fewest.takes(linear):
                model.set_submodule(name, fewest(linear))


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of the checkpoint by name. The file is opened anew for each: what is mapped counts as memory."""
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
        for name in names:
            with safe_open(file, "pt") as opened:
                tensor = opened.get_tensor(name)
                map_at_once([tensor])
                yield name, tensor


def packed_bytes(folder: Path, quantization: str, dtype: torch.dtype) -> int:
    """About what `load_packed` will take, from the names and shapes in the files alone."""
    sizes: dict[str, int] = {}
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, "pt") as opened:
            sizes |= {name: math.prod(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    if not any("lm_head" in name for name in sizes):  # the embeddings are packed a second time for it
        sizes["lm_head"] = sum(size for name, size in sizes.items() if name.endswith(EMBEDDING))
    return round(sum(size * _bytes_each(name, quantization, dtype) for name, size in sizes.items()))


def _bytes_each(name: str, quantization: str, dtype: torch.dtype) -> float:
    """Of a number in the tensor `name`. What is no matrix is too small to count."""
    if name.endswith(EMBEDDING):
        return 2  # bfloat16, as the file has it
    if quantization == "none" or "embed_positions" in name or "conv" in name:
        return dtype.itemsize
    return 5 / 8 if quantization == "int4" and "language_model" in name and ".layers." in name else 1


def _put(model: torch.nn.Module, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    path, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise ValueError(f"the checkpoint has {name}, which Voxtral has not") from None
    if isinstance(module, PackedLinear) and leaf == "weight":
        module.pack(tensor)
        return
    kept = tensor.clone() if name.endswith(EMBEDDING) else tensor.to(dtype, copy=True)
    setattr(module, leaf, torch.nn.Parameter(kept, requires_grad=False))


def _unpacked(module: torch.nn.Module) -> bool:
    return isinstance(module, PackedLinear) and module.packed is None
