"""Figures of the server for Prometheus, and whether it is well. Knows no protocol."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_gemma_mtp import __version__
from mlx_gemma_mtp.engine.engine import Engine
from mlx_gemma_mtp.server.exchange import Exchange

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SPEEDS = (5, 10, 20, 40, 60, 80, 120, 160, 240, 320, 640)  # tokens per second


class Metrics:
    """Counts the requests of one server. Call it with each that has ended."""

    def __init__(self, engine: Engine, model: str) -> None:
        """model: the name that clients are shown."""
        self._engine = engine
        self.registry = own = CollectorRegistry()  # another app in this process has its own

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"mgm_{name}", what, labels, registry=own)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"mgm_{name}", what, registry=own, buckets=buckets)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"mgm_{name}", what, labels, registry=own)

        self._requests = counter("requests", "Requests by path and status.", "path", "status")
        self._prompt = counter("prompt_tokens", "Tokens of prompts.")
        self._cached = counter("cached_tokens", "Tokens of prompts that were not prefilled again.")
        self._generated = counter("generated_tokens", "Tokens generated.")
        self._rounds = counter("rounds", "Rounds of all requests.")
        position = "by position in the round, from 1."
        self._drafted = counter("drafted_tokens", f"Draft tokens verified, {position}", "position")
        self._accepted = counter(
            "accepted_tokens", f"Draft tokens accepted, {position}", "position"
        )
        self._first = histogram(
            "time_to_first_token_seconds", "From a request to its first token.", SECONDS
        )
        self._queued = histogram("queue_seconds", "From a request to its prefill.", SECONDS)
        self._seconds = histogram(
            "request_seconds", "From a request to the end of its answer.", SECONDS
        )
        self._speed = histogram(
            "decode_tokens_per_second", "Speed of a request after its first token.", SPEEDS
        )
        states = gauge("engine_requests", "Requests in the engine by what they do.", "state")
        states.labels("waiting").set_function(lambda: engine.status.waiting)
        states.labels("reading").set_function(lambda: engine.status.reading)
        states.labels("decoding").set_function(lambda: engine.status.decoding)
        memory = gauge("memory_bytes", "Memory that MLX holds in this process.")
        memory.set_function(lambda: engine.status.memory_bytes)
        gauge("engine_loaded", "1 while the weights are in memory.").set_function(
            lambda: engine.loaded
        )
        gauge("build", "Always 1; version and model are its labels.", "version", "model").labels(
            __version__, model
        ).set(1)

    def __call__(self, exchange: Exchange) -> None:
        """Count a request."""
        path = exchange.path if exchange.is_known else "other"
        self._requests.labels(path, exchange.status).inc()
        if exchange.run is not None:
            self._seconds.observe(exchange.seconds)
        for done in exchange.completions:
            stats = done.stats
            self._prompt.inc(stats.prompt_tokens)
            self._cached.inc(stats.reused_tokens)
            self._generated.inc(stats.generated_tokens)
            self._rounds.inc(stats.rounds)
            for at, (drafted, accepted) in enumerate(
                zip(stats.drafted_at, stats.accepted_at, strict=True), 1
            ):
                self._drafted.labels(at).inc(drafted)
                self._accepted.labels(at).inc(accepted)
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
        return Response(encode(self.registry), headers={"Content-Type": content_type})

    async def _health(self, _: Request) -> Response:
        """Return llama.cpp's answer. It is well while its weights are out of memory, too."""
        if self._engine.closed:
            return JSONResponse({"status": "stopping"}, 503)
        return JSONResponse({"status": "ok"})
