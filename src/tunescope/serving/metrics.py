"""Prometheus metrics, under the names that vLLM's dashboards chart; ``model_name`` is the customization."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tunescope.inference import Engine

_SHORT = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_LONG = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)


class Metrics:
    """What a server counts.

    Args:
        engine: whose queue and rows are shown.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated.")
        self.cached_tokens = self._counter("vllm:prefix_cache_hits", "Tokens of prompts that were kept.")
        self.first_token = self._histogram("vllm:time_to_first_token_seconds", "Time to the first token.", _LONG)
        self.between_tokens = self._histogram(
            "vllm:inter_token_latency_seconds", "Time per further token of a request.", _SHORT
        )
        self.whole = self._histogram("vllm:e2e_request_latency_seconds", "Time of a whole request.", _LONG)
        self.ended = Counter(
            "vllm:request_success",
            "Requests that ended, by why they did.",
            labelnames=("model_name", "finished_reason"),
            registry=self.registry,
        )
        self.registry.register(_Now(engine))

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(name, about, labelnames=("model_name",), registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, about, labelnames=("model_name",), buckets=buckets, registry=self.registry)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)


class _Now(Collector):
    """How the engine stands when it is asked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        load = self._engine.load_now
        for name, about, value in (
            ("vllm:num_requests_running", "Rows under way.", load.running),
            ("vllm:num_requests_waiting", "Rows that wait.", load.waiting),
            ("vllm:kv_cache_usage_perc", "Share of the memory for keys and values in use, from 0 to 1.", load.kv_share),
            ("tunescope:customizations_loaded", "Customizations that can be asked without reading.", load.loaded),
            ("tunescope:customizations_bytes", "Memory of the customizations.", load.bytes),
        ):
            yield GaugeMetricFamily(name, about, value=value)
