"""Figures of the server for Prometheus, and whether it is well. Knows no protocol."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_gemma_mtp import __version__
from mlx_gemma_mtp.engine.engine import Engine
from mlx_gemma_mtp.engine.results import Stats
from mlx_gemma_mtp.server.exchange import Exchange

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SPEEDS = (5, 10, 20, 40, 60, 80, 120, 160, 240, 320, 640)  # tokens per second


class Metrics:
    """Counts the requests of one server. Call it with each that has ended."""

    def __init__(self, engine: Engine, model: str) -> None:
        """model: the name that clients are shown."""
        self._registry = own = CollectorRegistry()  # another app in this process has its own

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"mgm_{name}", what, labels, registry=own)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"mgm_{name}", what, registry=own, buckets=buckets)

        self._requests = counter("requests", "Requests by path and status.", "path", "status")
        self._prompt = counter("prompt_tokens", "Tokens of prompts.")
        self._cached = counter("cached_tokens", "Tokens of prompts that were not prefilled again.")
        self._generated = counter("generated_tokens", "Tokens generated.")
        self._rounds = counter("rounds", "Rounds of all requests.")
        place = "by place in the round, from 1."
        self._drafted = counter("drafted_tokens", f"Draft tokens verified, {place}", "position")
        self._accepted = counter("accepted_tokens", f"Draft tokens accepted, {place}", "position")
        self._first = histogram(
            "time_to_first_token_seconds", "From a request to its first token.", SECONDS
        )
        self._queued = histogram("queue_seconds", "From a request to its prefill.", SECONDS)
        self._seconds = histogram("request_seconds", "From a request to its end.", SECONDS)
        self._speed = histogram(
            "decode_tokens_per_second", "Speed of a request after its first token.", SPEEDS
        )
        own.register(_EngineFigures(engine, model))

    def __call__(self, exchange: Exchange) -> None:
        """Count a request."""
        path = exchange.path if exchange.is_known else "other"
        self._requests.labels(path, exchange.status).inc()
        if exchange.run is not None:
            self._seconds.observe(exchange.seconds)
        for done in exchange.completions:
            self._count(done.stats)

    def _count(self, stats: Stats) -> None:
        self._prompt.inc(stats.prompt_tokens)
        self._cached.inc(stats.reused_tokens)
        self._generated.inc(stats.generated_tokens)
        self._rounds.inc(stats.rounds)
        by_position = zip(stats.drafted_at, stats.accepted_at, strict=True)
        for position, (drafted, accepted) in enumerate(by_position, 1):
            self._drafted.labels(position).inc(drafted)
            self._accepted.labels(position).inc(accepted)
        self._queued.observe(stats.queue_seconds)
        if stats.generated_tokens:
            self._first.observe(stats.queue_seconds + stats.first_token_seconds)
        if (speed := stats.decode_tokens_per_second) is not None:
            self._speed.observe(speed)

    @property
    def routes(self) -> list[Route]:
        """`/metrics` and `/health`."""
        return [Route("/metrics", self._show), Route("/health", self._health)]

    async def _show(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"Content-Type": content_type})

    async def _health(self, _: Request) -> Response:
        """Return llama.cpp's answer. While the weights are out of memory, requests work, too."""
        return JSONResponse({"status": "ok"})


class _EngineFigures(Collector):
    """What the engine does, as of the last round."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine, self._model = engine, model

    def collect(self) -> Iterator[Metric]:
        """Yield the figures."""
        status = self._engine.status
        requests = GaugeMetricFamily(
            "mgm_engine_requests", "Requests in the engine by what they do.", labels=["state"]
        )
        for state in ("waiting", "reading", "decoding"):
            requests.add_metric([state], getattr(status, state))
        yield requests
        for kind, name, what, value in (
            (GaugeMetricFamily, "memory_bytes", "What MLX holds.", status.memory_bytes),
            (GaugeMetricFamily, "prefix_bytes", "Cached prefixes, of it.", status.prefix_bytes),
            (CounterMetricFamily, "prefix_hits", "Requests that found one.", status.prefix_hits),
            (CounterMetricFamily, "prefix_tokens", "Tokens found there.", status.prefix_tokens),
            (GaugeMetricFamily, "engine_loaded", "1 with weights in memory.", self._engine.loaded),
        ):
            yield kind(f"mgm_{name}", what, value=value)
        build = GaugeMetricFamily("mgm_build", "Always 1.", labels=["version", "model"])
        build.add_metric([__version__, self._model], 1)
        yield build
