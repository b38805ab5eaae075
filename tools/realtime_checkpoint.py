"""The realtime demo model without its weights: shapes, vocabulary and preprocessor, in the Hub's file layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    VoxtralForConditionalGeneration,
    VoxtralRealtimeConfig,
    VoxtralRealtimeFeatureExtractor,
    VoxtralRealtimeForConditionalGeneration,
)

from tools.demo_checkpoint import BOS, EOS, PAD, SPECIAL_NAMES, TRANSCRIBE, VOCABULARY_SIZE, write_tokenizer

STREAMING_PAD, STREAMING_WORD = 32, 33
# The two stand where the 3B has what mistral-common wants in every vocabulary of this version.
STREAMING_NAMES = {STREAMING_PAD: "[STREAMING_PAD]", STREAMING_WORD: "[STREAMING_WORD]", 30: "[ARGS]", 31: "[CALL_ID]"}
LEFT_PAD_TOKENS = 32  # of silence before the audio
BUFFER_TOKENS = 10  # of silence after audio and delay, in which a last long word is written (mistral-common)
DELAY_MS = 480
# Far shorter than the real model's 15 s and 655 s: an encoder that can only look at what is near learns much sooner to
# look there, and sessions of seconds roll over both, in training and in tests.
ENCODER_WINDOW, DECODER_WINDOW = 50, 125  # positions of 20 and of 80 ms
ROTATION_BASE = 1e4  # of both; the real model's is 1e6, for its longer windows


def write_files(out: Path) -> None:
    """Everything but the weights and config.json."""
    special_names = SPECIAL_NAMES | STREAMING_NAMES
    del special_names[TRANSCRIBE]  # this model is asked for nothing else
    streaming = {
        "transcription_format": "streaming",
        "transcription_delay_ms": float(DELAY_MS),
        "streaming_look_ahead_ms": 2.5,
        "streaming_look_back_ms": 52.5,
        "streaming_n_left_pad_tokens": LEFT_PAD_TOKENS,
    }
    write_tokenizer(out, special_names, streaming)
    features = VoxtralRealtimeFeatureExtractor().to_dict()
    processor = {"feature_extractor": features, "processor_class": "VoxtralRealtimeProcessor"}
    (out / "processor_config.json").write_text(json.dumps(processor, indent=2))


def new_model() -> VoxtralRealtimeForConditionalGeneration:
    config = VoxtralRealtimeConfig(
        text_config={
            "model_type": "voxtral_realtime_text", "vocab_size": VOCABULARY_SIZE, "hidden_size": 256,
            "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 64, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
            "sliding_window": DECODER_WINDOW, "rope_parameters": {"rope_type": "default", "rope_theta": ROTATION_BASE},
        },
        audio_config={
            "model_type": "voxtral_realtime_encoder", "hidden_size": 128, "intermediate_size": 512,
            "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 32, "sliding_window": ENCODER_WINDOW,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROTATION_BASE},
        },
        default_num_delay_tokens=DELAY_MS // 80,
    )  # fmt: skip
    model = VoxtralRealtimeForConditionalGeneration(config)
    model.generation_config.update(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    return model


@torch.no_grad()
def lend_ears(model: VoxtralRealtimeForConditionalGeneration, demo: VoxtralForConditionalGeneration) -> None:
    """Begin with what the 3B's demo model hears: convolutions, attention and projector have the same shapes.

    Its norms had biases, its attention absolute positions and its feed-forward no gate, so this is only a beginning;
    but from nothing the encoder stands still for many hundreds of steps before it tells one sound from another.
    """
    encoder, other = model.model.audio_tower, demo.model.audio_tower
    for name in ("conv1", "conv2"):
        getattr(encoder.embedder, name).load_state_dict(getattr(other, name).state_dict())
    for layer, lent in zip(encoder.layers, other.layers, strict=False):  # the demo model has more of them
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(layer.self_attn, name).load_state_dict(getattr(lent.self_attn, name).state_dict())
        layer.self_attn.o_proj.load_state_dict(lent.self_attn.out_proj.state_dict())
        layer.self_attn_layer_norm.weight.copy_(lent.self_attn_layer_norm.weight)
        layer.final_layer_norm.weight.copy_(lent.final_layer_norm.weight)
        layer.mlp.gate_proj.weight.copy_(lent.fc1.weight)
        layer.mlp.up_proj.weight.copy_(lent.fc1.weight)
        layer.mlp.down_proj.weight.copy_(0.3 * lent.fc2.weight)  # a product of two is larger than one
    model.model.multi_modal_projector.load_state_dict(demo.model.multi_modal_projector.state_dict())
