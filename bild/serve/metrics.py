"""What a service counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from bild.serve.worker import Answer, Worker

PATHS = {"/generate", "/stream", "/health", "/metrics", "/docs", "/openapi.json", "/"}
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one service, in a registry of their own.

    Args:
        worker: whose queue is looked at.
    """

    def __init__(self, worker: Worker) -> None:
        self.registry = CollectorRegistry()
        to, by = self.registry, ["path", "status"]
        self.requests = Counter("bild_requests", "Requests answered.", by, registry=to)
        self.texts = Counter("bild_texts", "Texts decoded.", registry=to)
        self.tokens = Counter("bild_tokens", "Tokens written.", registry=to)
        self.forwards = Counter("bild_forwards", "Decoder forwards.", ["model"], registry=to)
        self.rollbacks = Counter("bild_rollbacks", "Drafts cut by the large model.", registry=to)
        self.seconds = Histogram(
            "bild_decoding_seconds", "Decoding one text.", buckets=SECONDS, registry=to
        )
        waiting = Gauge("bild_waiting_texts", "Texts that wait.", registry=to)
        waiting.set_function(lambda: worker.waiting)
        running = Gauge("bild_running_texts", "Texts that are decoded now.", registry=to)
        running.set_function(lambda: worker.running)

    def answered(self, path: str, status: int) -> None:
        """A request was answered."""
        self.requests.labels(path if path in PATHS else "other", status).inc()

    def count(self, answer: Answer) -> None:
        """A text was decoded."""
        stats = answer.stats
        self.texts.inc()
        self.tokens.inc(stats.generated_tokens)
        self.forwards.labels("large").inc(stats.large_forwards)
        self.forwards.labels("small").inc(stats.small_forwards)
        self.rollbacks.inc(stats.rollbacks)
        self.seconds.observe(answer.seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
