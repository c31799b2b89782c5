"""One line for each request, on stderr: figures, never a prompt, an answer or a key."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from contextlib import suppress
from typing import Any

from mlx_gemma_mtp.errors import one_line
from mlx_gemma_mtp.server.exchange import LEFT, Exchange

# Pages, lists and figures, which programs ask for all the time; logged if they fail.
UNLOGGED = ("GET", "HEAD", "OPTIONS")

PATH_LIMIT = 200  # characters that are logged

TIME = "%Y-%m-%dT%H:%M:%S%z"


def facts(exchange: Exchange, model: str) -> dict[str, Any]:
    """Return what is logged of a request, by name; values that it does not have are left out.

    model: the one of a request that names none. Seconds and tokens per second are those that its
    client saw. Of several completions, tokens are added up.
    """
    found: dict[str, Any] = {
        "time": time.strftime(TIME),
        "method": exchange.method,
        "path": exchange.path[:PATH_LIMIT],
        "status": exchange.status,
        "seconds": round(exchange.seconds, 3),
    }
    if (run := exchange.run) is not None:
        found |= {"protocol": run.asked.protocol, "model": run.asked.model or model}
    if (failure := exchange.failure) is not None:
        found |= {"error": failure.code or failure.kind, "field": failure.field}
    if done := exchange.completions:
        each = [one.stats for one in done]
        generated = sum(one.generated_tokens for one in each)
        drafted = sum(one.drafted for one in each)
        decoding = max(one.decode_seconds for one in each)
        first = min(one.queue_seconds + one.first_token_seconds for one in each)
        found |= {
            "prompt_tokens": sum(one.prompt_tokens for one in each),
            "cached_tokens": sum(one.reused_tokens for one in each),
            "generated_tokens": generated,
            "first_token_seconds": round(first, 3) if generated else None,
            "tokens_per_second": round((generated - len(each)) / decoding, 1) if decoding else None,
            "acceptance_rate": round(sum(one.accepted for one in each) / drafted, 3)
            if drafted
            else None,
            "finish_reason": "/".join(dict.fromkeys(one.finish_reason for one in done)),
        }
    return {name: value for name, value in found.items() if value is not None}


def line(exchange: Exchange, model: str) -> str:
    """Return these facts for people."""
    found = facts(exchange, model)
    what = f"{exchange.method} {_plain(found['path'])}"
    parts = [found["time"][11:19], found.get("protocol", what)]
    parts += [found["model"]] if "model" in found else []
    if "prompt_tokens" in found:
        cached = found["cached_tokens"]
        parts.append(
            f"prompt {found['prompt_tokens']:,}" + (f" ({cached:,} cached)" if cached else "")
        )
        parts.append(f"{found['generated_tokens']:,} tokens")
    if "first_token_seconds" in found:
        parts.append(f"first in {found['first_token_seconds']:.2f} s")
    if "tokens_per_second" in found:
        parts.append(f"{found['tokens_per_second']:.1f} tok/s")
    if "acceptance_rate" in found:
        parts.append(f"drafts {found['acceptance_rate']:.0%}")
    if exchange.status == LEFT:
        parts.append("client left")
    elif exchange.status >= 400:
        parts += [
            str(exchange.status),
            *(_plain(found[name]) for name in ("error", "field") if name in found),
        ]
    else:
        parts.append(found.get("finish_reason", str(exchange.status)))
    return "  ".join([*parts, f"{found['seconds']:.2f} s"])


def _plain(text: str) -> str:
    """Return what a client sent without its escape sequences and line breaks."""
    return ascii(text[:100])[1:-1]


class Log:
    """Writes requests to stderr."""

    def __init__(self, model: str, *, as_json: bool = False) -> None:
        """model: the name that clients are shown. as_json: write one JSON object a line."""
        self._model, self._as_json = model, as_json

    def __call__(self, exchange: Exchange) -> None:
        """Write the line of a request."""
        if exchange.method in UNLOGGED and exchange.status < 400:
            return
        text = line(exchange, self._model)
        if self._as_json:
            text = json.dumps(facts(exchange, self._model))
        with suppress(OSError):  # the reader of stderr has gone; the server is needed still
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


class OneLine(logging.Formatter):
    """What went wrong within the server, as one line; with MGM_DEBUG set, also where."""

    def __init__(self, *, as_json: bool = False) -> None:
        """as_json: make it a JSON object."""
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        if os.environ.get("MGM_DEBUG"):
            return super().format(record)
        message = " ".join(record.getMessage().split())
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            message += f": {type(error).__name__}: {one_line(error)} (MGM_DEBUG=1 shows where)"
        if self._as_json:
            return json.dumps({"time": time.strftime(TIME), "message": message})
        return f"mgm: {message}"


def is_of_use(record: logging.LogRecord) -> bool:
    """Return False for requests that end because the server does, and for advice on WebSockets."""
    ends = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not ends and "WebSocket" not in record.msg


def log_trouble(*, as_json: bool = False) -> None:
    """Write warnings and errors of all packages to stderr, as `OneLine`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(as_json=as_json))
    handler.addFilter(is_of_use)
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
