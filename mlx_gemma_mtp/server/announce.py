"""What a server says once it can be used: where it is, what it serves, and lines to paste."""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import Mapping
from typing import Any

from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings

QUESTION = "What is 17 + 25?"
KEY = "MGM_API_KEY"  # the variable with the key

# Hosts that mean all addresses, each with the one to use on this machine.
ALL_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def url_of(host: str, port: int) -> str:
    """Return the address to use on this machine for a server at this host."""
    shown = ALL_ADDRESSES.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def facts(service: Service, url: str, max_queue: int) -> dict[str, Any]:
    """Return what is announced, by name.

    context: tokens of a prompt and its answer that fit in memory now.
    """
    engine, settings = service.engine, service.settings
    return {
        "url": url,
        "models": list(settings.served),
        "checkpoint": engine.name,
        "drafter": engine.drafter_name if engine.has_drafter else None,
        "context": min(engine.context, engine.longest_context()),
        "max_batch": engine.max_batch,
        "max_queue": max_queue,
        "needs_key": settings.api_key is not None,
    }


def block(found: Mapping[str, Any], settings: Settings) -> str:
    """Return these facts for people, and how to ask with curl, OpenAI's SDK and Claude Code."""
    url, model, key = found["url"], found["models"][0], found["needs_key"]
    drafter = f"drafter {found['drafter']}" if found["drafter"] else "no drafter"
    reached = "this machine only" if settings.local else "other machines, too"
    body = json.dumps({"messages": [{"role": "user", "content": QUESTION}]})
    bearer = f' -H "Authorization: Bearer ${KEY}"' if key else ""
    python_key = f'os.environ["{KEY}"]' if key else '"none"'
    token, quoted = f"${KEY}" if key else "none", shlex.quote(model)
    elsewhere = []
    if settings.host in ALL_ADDRESSES:
        name = url_of(socket.gethostname(), int(url.rpartition(":")[2]))
        elsewhere = [f"  network   {name}, or the IP address of this machine; with the API key"]
    lines = [
        f"Listening on {url} ({reached}; Ctrl-C stops it)",
        *elsewhere,
        f"  model     {' or '.join(found['models'])}: {found['checkpoint']}, {drafter}",
        f"  context   {found['context']:,} tokens",
        f"  requests  {found['max_batch']} at once; {found['max_queue']} more wait",
        f"  API key   {'required' if key else 'any, or none'}",
        "Open it in a browser, or ask it with curl, OpenAI's SDK or Claude Code:",
        f"  curl {url}/v1/chat/completions{bearer} -d '{body}'",
        f'  client = OpenAI(base_url="{url}/v1", api_key={python_key})  # model="{model}"',
        f"  ANTHROPIC_BASE_URL={url} ANTHROPIC_AUTH_TOKEN={token} ANTHROPIC_MODEL={quoted} "
        f"ANTHROPIC_DEFAULT_HAIKU_MODEL={quoted} "
        f"CLAUDE_CODE_MAX_CONTEXT_TOKENS={found['context']} claude",
    ]
    return "\n".join(lines)
