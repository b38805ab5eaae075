"""Write a Voxtral checkpoint with random weights: speed and memory can be measured on it, words cannot.

    python -m bench.checkpoint FOLDER [--size 3b|4b-realtime|tiny|tiny-realtime] [--device cuda]

`3b` has the shapes of mistralai/Voxtral-Mini-3B-2507 (4.7e9 parameters, 9.4 GB), `4b-realtime` those of
mistralai/Voxtral-Mini-4B-Realtime-2602 (4.4e9, 8.9 GB). What is not said here is as in the demo models, whose files
have the same layouts.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import mistral_common
import torch
from transformers import (
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    VoxtralRealtimeConfig,
    VoxtralRealtimeForConditionalGeneration,
)

from config import DEMO_MODEL
from tools.realtime_checkpoint import new_model as new_realtime_demo
from tools.realtime_checkpoint import write_files as write_realtime_files

TEXT = {
    "3b": {
        "vocab_size": 131_072, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 30,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    },
    "tiny": {"vocab_size": 131_072, "hidden_size": 64, "num_hidden_layers": 1},
}  # fmt: skip
REALTIME_TEXT = {
    "4b-realtime": {
        "vocab_size": 131_072, "hidden_size": 3072, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "sliding_window": 8192,
    },
    "tiny-realtime": {"vocab_size": 131_072, "hidden_size": 64, "num_hidden_layers": 1},
}  # fmt: skip
AUDIO = {
    "3b": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20},
    "tiny": {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1},
}
REALTIME_AUDIO = {
    "4b-realtime": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 32,
        "head_dim": 64, "sliding_window": 750,
    },
    "tiny-realtime": {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1},
}  # fmt: skip
SIZES = (*TEXT, *REALTIME_TEXT)


def write_checkpoint(folder: Path, size: str, device: str) -> None:
    """`device`: where the weights are drawn, which takes minutes for the large ones on a CPU."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if size in REALTIME_TEXT:
        model = new_realtime_model(size, device)
        write_realtime_files(folder)
        write_tokenizer(folder, folder)
    else:
        model = new_model(size, device)
        shutil.copy(DEMO_MODEL / "preprocessor_config.json", folder)
        write_tokenizer(folder, DEMO_MODEL)
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=11)
    model.save_pretrained(folder)


def new_model(size: str, device: str) -> VoxtralForConditionalGeneration:
    demo = VoxtralConfig.from_pretrained(DEMO_MODEL, local_files_only=True)
    config = VoxtralConfig(
        text_config=demo.text_config.to_dict() | TEXT[size],
        audio_config=demo.audio_config.to_dict() | AUDIO[size],
        audio_token_id=demo.audio_token_id,
        projector_hidden_act=demo.projector_hidden_act,
        dtype="bfloat16",
    )
    with torch.device(device):
        return VoxtralForConditionalGeneration._from_config(config)


def new_realtime_model(size: str, device: str) -> VoxtralRealtimeForConditionalGeneration:
    demo = new_realtime_demo().config
    config = VoxtralRealtimeConfig(
        text_config=demo.text_config.to_dict() | REALTIME_TEXT[size],
        audio_config=demo.audio_config.to_dict() | REALTIME_AUDIO[size],
        dtype="bfloat16",
    )
    with torch.device(device):
        return VoxtralRealtimeForConditionalGeneration._from_config(config)


def write_tokenizer(folder: Path, demo: Path) -> None:
    """The whole vocabulary of Tekken, as mistral-common ships it, with a demo's special tokens and audio section."""
    tekken = json.loads((demo / "tekken.json").read_text())
    tekken["vocab"] = json.loads((Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_text())[
        "vocab"
    ]
    tekken["config"] |= {"default_vocab_size": 131_072, "num_vocab_tokens": len(tekken["vocab"])}
    (folder / "tekken.json").write_text(json.dumps(tekken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="3b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    write_checkpoint(args.folder, args.size, args.device)


if __name__ == "__main__":
    main()
