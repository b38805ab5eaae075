"""What is counted for Prometheus. Names follow its conventions: base units, `_total` for what only grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from transcript import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
TIMES_REAL_TIME = (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


class Gauges(Collector):
    """Values that are read when somebody looks: name, help and a function that gives (label, value) pairs."""

    def __init__(self, gauges: list[tuple[str, str, str, Callable[[], Iterable[tuple[str, float]]]]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        for name, help_text, label, read in self._gauges:
            family = GaugeMetricFamily(name, help_text, labels=[label] if label else [])
            for value_label, value in read():
                family.add_metric([value_label] if label else [], value)
            yield family


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "voxtral_http_requests",
            "Answers by route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.audio_seconds = Counter("voxtral_audio_seconds", "Audio transcribed", registry=self.registry)
        self.silence_seconds = Counter(
            "voxtral_silence_seconds", "Audio in which nobody spoke and which no model heard", registry=self.registry
        )
        self.tokens = Counter("voxtral_tokens", "Tokens read and written", ["kind"], registry=self.registry)
        self.stored_chunks = Counter(
            "voxtral_stored_chunks", "Chunks looked for among those of earlier requests", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self.first_text = self._seconds(
            "voxtral_first_text_seconds", "From a transcription's request to its first text"
        )
        self.whole = self._seconds("voxtral_transcription_seconds", "From a transcription's request to its last text")
        self.answer_first = self._seconds("voxtral_answer_first_seconds", "From a chat's request to its first output")
        self.answer_whole = self._seconds("voxtral_answer_seconds", "From a chat's request to the end of all choices")
        self.live_seconds = Counter("voxtral_live_audio_seconds", "Audio fed to live sessions", registry=self.registry)
        self.live_lag = self._seconds(
            "voxtral_live_lag_seconds", "From the end of an utterance of a live session to its whole text"
        )
        self.speed = Histogram(
            "voxtral_times_real_time", "Seconds of audio for each second of work", buckets=TIMES_REAL_TIME,
            registry=self.registry,
        )  # fmt: skip

    def _seconds(self, name: str, help_text: str) -> Histogram:
        return Histogram(name, help_text, buckets=SECONDS, registry=self.registry)

    def count(self, usage: Usage) -> None:
        self.audio_seconds.inc(usage.audio_ms / 1000)
        self.count_tokens(usage)

    def count_tokens(self, usage: Usage) -> None:
        self.tokens.labels("text").inc(usage.text_tokens)
        self.tokens.labels("audio").inc(usage.audio_tokens)
        self.tokens.labels("output").inc(usage.output_tokens)

    def render(self) -> bytes:
        return generate_latest(self.registry)
