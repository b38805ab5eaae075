"""The realtime demo model through the server: words that were said, live and in files, at every delay, for long."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from statistics import median, quantiles

import httpx
import numpy as np
import pytest

from tests.serving import DEMOS, Server
from tests.sockets import Socket, pieces, socket
from tests.speech import SOUND_ALIKES, Clip, assert_heard, clip, clips_of, word_error_rate, word_errors

MODEL = "voxtral-mini-4b-realtime"
ADDRESS = f"/v1/audio/transcriptions/realtime?model={MODEL}"
RATE = 16_000
SPOKEN = clips_of("trained voice")[:8]


def begin(talk: Socket, delay_ms: int) -> None:
    talk.say("session.update", session={"target_streaming_delay_ms": delay_ms})
    assert talk.until("session.updated")[-1]["session"]["target_streaming_delay_ms"] == delay_ms


def speak(talk: Socket, samples: np.ndarray) -> None:
    for piece in pieces(samples):
        talk.say("input_audio.append", audio=piece)


def written(server: Server, samples: np.ndarray, delay_ms: int = 480) -> str:
    with socket(server, ADDRESS) as talk:
        begin(talk, delay_ms)
        speak(talk, samples)
        talk.say("input_audio.end")
        *events, done = talk.until("transcription.done")
        assert "".join(event.get("text", "") for event in events if event["type"].endswith("delta")) == done["text"]
        return done["text"]


def transcribe(server: Server, spoken: Clip, **fields: str) -> dict:
    form = {"model": MODEL, "response_format": "verbose_json", **fields}
    answer = server.client.post("/v1/audio/transcriptions", data=form, files={"file": spoken.data})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_nearly_all_words_are_right_at_every_delay_and_all_delays_share_a_batch(server: Server) -> None:
    delays = (160, 480, 2400)
    with ThreadPoolExecutor(len(SPOKEN) * len(delays)) as threads:
        asked = [(delay, each) for delay in delays for each in SPOKEN]
        texts = [*threads.map(lambda each: written(server, each[1].samples(), each[0]), asked)]
    pairs = [(each.words, text) for (_, each), text in zip(asked, texts, strict=True)]
    rates = [word_error_rate(pairs[first : first + len(SPOKEN)]) for first in range(0, len(pairs), len(SPOKEN))]
    assert max(rates) <= 0.05


def test_text_comes_while_somebody_still_speaks(server: Server) -> None:
    spoken = clip("dense_0")
    with socket(server, ADDRESS) as talk:
        begin(talk, 480)
        speak(talk, spoken.samples()[: 15 * RATE])
        events = talk.until("transcription.text.delta")
        while sum(event["type"] == "transcription.text.delta" for event in events) < 20:
            events += talk.until("transcription.text.delta")
        speak(talk, spoken.samples()[15 * RATE :])
        talk.say("input_audio.end")
        assert_heard(spoken.words, talk.until("transcription.done")[-1]["text"])


def test_a_recording_is_heard_with_the_times_of_its_words(server: Server) -> None:
    errors = []
    for spoken in SPOKEN[:6]:
        answer = transcribe(server, spoken, **{"timestamp_granularities[]": "word"})
        assert_heard(spoken.words, answer["text"])
        words = answer["words"]
        assert all(a["end"] <= b["start"] + 1e-6 for a, b in pairwise(words))
        if [word["word"].strip() for word in words] == spoken.words.split():
            errors += [abs(1000 * word["start"] - ms) for word, ms in zip(words, spoken.starts_ms, strict=True)]
    assert len(errors) > 20
    assert median(errors) <= 80  # the step of its clock
    assert quantiles(errors, n=10)[-1] <= 240


def test_a_recording_streams(server: Server) -> None:
    spoken, form = clip("voice_en-us"), {"model": MODEL, "stream": "true"}
    with server.client.stream("POST", "/v1/audio/transcriptions", data=form, files={"file": spoken.data}) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    assert len([event for event in events if event["type"] == "transcript.text.delta"]) > 2
    assert_heard(spoken.words, events[-1]["text"])


def test_what_follows_a_word_decides_its_spelling_if_the_delay_is_long_enough_to_hear_it(server: Server) -> None:
    spoken = clip("what_follows")
    with ThreadPoolExecutor(3) as threads:
        texts = [*threads.map(partial(written, server, spoken.samples()), (80, 480, 2400))]
    shortest, usual, longest = (word_errors(spoken.words, text, SOUND_ALIKES) for text in texts)
    assert max(usual, longest) < shortest / 2
    assert max(usual, longest) <= 0.03 * len(spoken.words.split())


def test_where_nobody_speaks_nothing_is_written(server: Server) -> None:
    for quiet in clips_of("no speech"):
        assert written(server, quiet.samples()) == ""


def test_after_minutes_words_are_as_right_as_at_the_beginning_and_memory_has_not_grown(server: Server) -> None:
    """Both windows have rolled over dozens of times by then: the encoder's is one second, the decoder's ten."""
    said = clips_of("trained voice")
    spoken = np.concatenate([np.append(each.samples(), np.zeros(RATE // 2, np.float32)) for each in said])
    words = " ".join(each.words for each in said)
    memory, texts = [], []
    with socket(server, ADDRESS) as talk:
        begin(talk, 480)
        for _ in range(3):
            speak(talk, spoken)
            talk.say("input_audio.flush")
            text = ""
            while len(text.split()) < 0.9 * len(words.split()):
                text += "".join(event.get("text", "") for event in talk.until("transcription.text.delta")[-1:])
            texts.append(text)
            memory.append(server.health()["memory_bytes"])
        talk.say("input_audio.end")
        whole = talk.until("transcription.done")[-1]["text"]
    assert word_error_rate([(" ".join([words] * 3), whole)]) <= 0.06
    assert memory[-1] - memory[0] < 20e6


@pytest.mark.parametrize("delay_ms", [480, 2400])
def test_flushes_however_many_change_no_word(server: Server, delay_ms: int) -> None:
    def said(spoken: Clip) -> str:
        with socket(server, ADDRESS) as talk:
            begin(talk, delay_ms)
            for piece in pieces(spoken.samples(), 0.02):
                talk.say("input_audio.append", audio=piece)
                talk.say("input_audio.flush")
            talk.say("input_audio.end")
            return talk.until("transcription.done")[-1]["text"]

    with ThreadPoolExecutor(len(SPOKEN)) as threads:
        texts = [*threads.map(said, SPOKEN)]
    assert word_error_rate([(each.words, text) for each, text in zip(SPOKEN, texts, strict=True)]) <= 0.05


def test_keywords_that_change_in_the_middle_decide_how_the_next_words_are_spelled(server: Server) -> None:
    spoken = np.append(clip("sounds_like_two").samples(), np.zeros(RATE, np.float32))
    with socket(server, ADDRESS) as talk:
        begin(talk, 480)
        heard = []
        for keywords in (["to"], [], ["to"]):
            talk.say("session.update", session={"context_bias": keywords})
            speak(talk, spoken)
            talk.say("input_audio.flush")
            text = ""
            while "garden" not in text:
                text += talk.until("transcription.text.delta")[-1]["text"]
            heard += re.findall(r"\b(?:to|two)\b", text)
        talk.say("input_audio.end")
        talk.until("transcription.done")
    assert heard == ["to", "two", "to"]


def test_a_prompt_of_words_is_expected_in_a_file_and_any_other_is_refused(server: Server) -> None:
    def answer(**fields: str) -> httpx.Response:
        files = {"file": clip("sounds_like_two").data}
        return server.client.post("/v1/audio/transcriptions", files=files, data={"model": MODEL, **fields})

    assert "two" in answer().json()["text"].split()
    assert "to" in answer(prompt="to, Lotti").json()["text"].split()
    refused = answer(prompt="Somebody counts to two.")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    assert "nothing but words to expect" in refused.json()["error"]["message"]


def test_most_steps_are_guessed_and_the_guesses_are_right(server: Server) -> None:
    def counters() -> dict[str, float]:
        lines = server.client.get("/metrics").text.splitlines()
        found = [re.fullmatch(r"voxtral_realtime_(\w+)\{model=.*\} (\S+)", line) for line in lines]
        return {match[1]: float(match[2]) for match in found if match}

    transcribe(server, clip("dense_0"))
    before = counters()
    transcribe(server, clip("dense_1"))
    after = counters()
    steps, reads = (after[name] - before[name] for name in ("steps", "reads"))
    assert steps > 30_000 / 80
    assert reads < 0.6 * steps


@pytest.mark.parametrize(
    "name", ["voxtral-demo-realtime", "voxtral-realtime", "mistralai/Voxtral-Mini-4B-Realtime-2602"]
)
def test_it_answers_to_the_names_of_what_it_stands_for(server: Server, name: str) -> None:
    assert server.client.get(f"/v1/models/{name}").json()["id"] in (name, "voxtral-demo-realtime")
    assert_heard(clip("voice_en-us").words, transcribe(server, clip("voice_en-us"), model=name)["text"])


def test_a_prompt_that_only_a_loaded_model_can_refuse_is_named_too() -> None:
    with Server("--demo") as server:
        assert not any(m["id"] == DEMOS[1] and m["loaded"] for m in server.client.get("/v1/models").json()["data"])
        form = {"model": MODEL, "prompt": "Somebody counts to two."}
        refused = server.client.post("/v1/audio/transcriptions", data=form, files={"file": SPOKEN[0].data})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
