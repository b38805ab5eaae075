"""The demo model without its weights: shapes, vocabulary and preprocessor, in the Hub's file layout."""

from __future__ import annotations

import base64
import json
import math
from itertools import islice
from pathlib import Path

import mistral_common
import torch
from transformers import VoxtralConfig, VoxtralForConditionalGeneration, WhisperFeatureExtractor

from tools.demo_speech import SAMPLE_RATE, SPOKEN_WORDS

VOCABULARY_SIZE, SPECIAL_TOKENS = 2048, 1000
BOS, EOS, INST, END_INST, PAD, AUDIO, BEGIN_AUDIO, TRANSCRIBE = 1, 2, 3, 4, 11, 24, 25, 34
SPECIAL_NAMES = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]",
    13: "[IMG_END]", 14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 32: "[ARGS]", 33: "[CALL_ID]", 34: "[TRANSCRIBE]",
}  # fmt: skip
AUDIO_SECTION = {
    "sampling_rate": SAMPLE_RATE,
    "frame_rate": 12.5,
    "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
}


def write_tokenizer(out: Path, special_names: dict[int, str], audio: dict[str, object]) -> None:
    """A Tekken vocabulary of the demo's size, with a model's special tokens and audio section.

    Tekken's own merges come in order of frequency, and the first thousand spell "monday" with four tokens. Here the
    prefixes of the spoken words come first, so that each spoken word is one token and the decoder needs as few steps
    as it would with the full vocabulary; rare spellings and all other text take several.
    """
    tekken = json.loads((Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_text())
    tekken.pop("image", None)
    single_bytes = [base64.b64decode(entry["token_bytes"]) for entry in tekken["vocab"][:256]]
    prefixes = [f" {word}"[:length].encode() for word in SPOKEN_WORDS for length in range(2, len(word) + 2)]
    frequent = (base64.b64decode(entry["token_bytes"]) for entry in tekken["vocab"][256:])
    pieces = list(dict.fromkeys([*single_bytes, *prefixes, *islice(frequent, VOCABULARY_SIZE)]))
    tekken["vocab"] = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": piece.decode(errors="replace")}
        for rank, piece in enumerate(pieces[: VOCABULARY_SIZE - SPECIAL_TOKENS])
    ]
    tekken["config"].update(
        default_vocab_size=VOCABULARY_SIZE, default_num_special_tokens=SPECIAL_TOKENS, version="v13",
        num_vocab_tokens=len(tekken["vocab"]),
    )  # fmt: skip
    tekken["special_tokens"] = [
        {"rank": i, "token_str": special_names.get(i, f"<SPECIAL_{i}>"), "is_control": True}
        for i in range(SPECIAL_TOKENS)
    ]
    tekken["audio"] = AUDIO_SECTION | audio
    (out / "tekken.json").write_text(json.dumps(tekken))


def write_preprocessor(out: Path) -> None:
    WhisperFeatureExtractor(feature_size=128).save_pretrained(out)
    path = out / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processor_class": "VoxtralProcessor"}, indent=2))


def sinusoids(length: int, channels: int) -> torch.Tensor:
    """Whisper's fixed positions (length, channels): sines, then cosines, of geometrically spaced frequencies."""
    step = math.log(10_000) / (channels // 2 - 1)
    angles = torch.arange(length)[:, None] * torch.exp(-step * torch.arange(channels // 2))[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def new_model() -> VoxtralForConditionalGeneration:
    config = VoxtralConfig(
        text_config={
            "model_type": "llama", "vocab_size": VOCABULARY_SIZE, "hidden_size": 256, "intermediate_size": 768,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
            "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 1e8,
        },
        audio_config={
            "model_type": "voxtral_encoder", "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6,
            "num_attention_heads": 4,
        },
        audio_token_id=AUDIO,
        projector_hidden_act="gelu",
    )  # fmt: skip
    model = VoxtralForConditionalGeneration(config)
    positions = model.model.audio_tower.embed_positions.weight
    positions.data.copy_(sinusoids(*positions.shape))
    return model
