"""Write a Voxtral checkpoint with random weights: speed and memory can be measured on it, words cannot.

    python -m bench.checkpoint FOLDER [--size 3b|tiny] [--device cuda]

`3b` has the shapes of mistralai/Voxtral-Mini-3B-2507 (4.7e9 parameters, 9.4 GB). What is not said here is as in the
demo model, whose files have the same layout.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import mistral_common
import torch
from transformers import VoxtralConfig, VoxtralForConditionalGeneration

from config import DEMO_MODEL

TEXT = {
    "3b": {
        "vocab_size": 131_072, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 30,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    },
    "tiny": {"vocab_size": 131_072, "hidden_size": 64, "num_hidden_layers": 1},
}  # fmt: skip
AUDIO = {
    "3b": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20},
    "tiny": {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1},
}


def write_checkpoint(folder: Path, size: str, device: str) -> None:
    """`device`: where the weights are drawn, which takes minutes for 3b on a CPU."""
    demo = VoxtralConfig.from_pretrained(DEMO_MODEL, local_files_only=True)
    config = VoxtralConfig(
        text_config=demo.text_config.to_dict() | TEXT[size],
        audio_config=demo.audio_config.to_dict() | AUDIO[size],
        audio_token_id=demo.audio_token_id,
        projector_hidden_act=demo.projector_hidden_act,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = VoxtralForConditionalGeneration._from_config(config)
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=11)
    model.save_pretrained(folder)
    shutil.copy(DEMO_MODEL / "preprocessor_config.json", folder)
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """The whole vocabulary of Tekken, as mistral-common ships it, with Voxtral's special tokens and audio section."""
    tekken = json.loads((DEMO_MODEL / "tekken.json").read_text())
    tekken["vocab"] = json.loads((Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_text())[
        "vocab"
    ]
    tekken["config"] |= {"default_vocab_size": 131_072, "num_vocab_tokens": len(tekken["vocab"])}
    (folder / "tekken.json").write_text(json.dumps(tekken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=TEXT, default="3b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    write_checkpoint(args.folder, args.size, args.device)


if __name__ == "__main__":
    main()
