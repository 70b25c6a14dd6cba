"""What the service counts, in the form that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from unirl_env.types import Scores

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The counters of one app, apart from those of any other one in the process.

    Attributes:
        registry: Where they are registered.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def made(kind: type, name: str, words: str, labels: tuple[str, ...] = ("reward",), **more) -> object:
            return kind(f"unirl_service_{name}", words, labels, registry=self.registry, **more)

        self._requests = made(Counter, "requests", "Requests by what was answered.", ("reward", "status"))
        self._repeats = made(Counter, "repeats", "Attempts that met work of an earlier attempt.")
        self._samples = made(Counter, "samples", "Samples scored.")
        self._invalid = made(Counter, "invalid", "Samples whose score is invalid.")
        self._batch = made(Histogram, "batch_samples", "Samples of one call of a scorer.", buckets=SIZES)
        self._scoring = made(
            Histogram, "scoring_seconds", "Seconds of one call of a scorer.", buckets=SECONDS
        )
        self._whole = made(
            Histogram, "request_seconds", "Seconds from a request's head to its answer.", buckets=SECONDS
        )
        self._waiting = made(Gauge, "waiting_samples", "Samples that no call has taken yet.")
        self._call = made(Gauge, "call_seconds", "Seconds since the call under way began; 0 without one.")

    def of(self, reward: str) -> RewardMetrics:
        """Those of one reward, which appear as zeros before it is first asked."""
        return RewardMetrics(self, reward)

    def answered(self, reward: str, status: int, seconds: float) -> None:
        """A request was answered; `reward` is empty where none was found in it."""
        self._requests.labels(reward, str(status)).inc()
        self._whole.labels(reward).observe(seconds)

    def repeated(self, reward: str) -> None:
        """A request was answered by what an earlier attempt began; it counts nowhere else."""
        self._repeats.labels(reward).inc()

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)


class RewardMetrics:
    """What a batcher tells of its calls."""

    def __init__(self, metrics: Metrics, reward: str):
        self._batch = metrics._batch.labels(reward)
        self._scoring = metrics._scoring.labels(reward)
        self._samples = metrics._samples.labels(reward)
        self._invalid = metrics._invalid.labels(reward)
        self._waiting = metrics._waiting.labels(reward)
        self._call = metrics._call.labels(reward)
        metrics._repeats.labels(reward)

    def scored(self, scores: Scores, seconds: float) -> None:
        """A call gave `scores` after `seconds`."""
        self._batch.observe(len(scores))
        self._scoring.observe(seconds)
        self._samples.inc(len(scores))
        self._invalid.inc(int((~scores.valid).sum()))

    def watch(self, waiting: Callable[[], int], call_seconds: Callable[[], float]) -> None:
        """Ask for these numbers whenever the metrics are read."""
        self._waiting.set_function(waiting)
        self._call.set_function(call_seconds)
