"""`mgm serve`: a model behind the HTTP interfaces that other programs speak."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.errors import INTERRUPTED, MgmError, UsageError

if TYPE_CHECKING:
    from socket import socket

    from mlx_gemma_mtp import Engine
    from mlx_gemma_mtp.server.settings import Settings

log = logging.getLogger(__name__)

PACKAGES = ("starlette", "uvicorn", "pydantic", "prometheus_client")  # of the extra

MOST_PREFIX_BYTES = 8_000_000_000


@options.spread
def serve(
    context: typer.Context,
    pair: options.Loading,
    model_name: options.ModelName = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but loopback needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="MGM_API_KEY",
            show_envvar=False,
            help="Key that clients must send. Better set MGM_API_KEY: `ps` shows command lines.",
        ),
    ] = None,
    served_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<str>", help="Name of the model for clients; repeatable [its own name]."
        ),
    ] = None,
    context_tokens: Annotated[
        int | None,
        typer.Option(
            "--context", min=1, help="Maximum tokens of prompt and answer [the model's limit]."
        ),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=8, help="Requests to run at once.")] = 8,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; others get a 503.")
    ] = 256,
    prefix_cache: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="GB for cached prompts; 0: off [1/8 of memory, up to 8].",
        ),
    ] = None,
    idle_unload: Annotated[
        float | None,
        typer.Option(help="Free the model's memory after this many seconds without a request."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="<str>", help="Another host name that clients use; repeatable."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<str>",
            help="Web page that may use it, such as https://example.org, or *; repeatable.",
        ),
    ] = None,
    max_body: Annotated[int, typer.Option(min=1, help="Largest request, in MB.")] = 32,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not log requests.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON lines.")] = False,
    stop_when_parent_dies: Annotated[
        bool,
        typer.Option("--stop-when-parent-dies", help="Stop when the program that started it ends."),
    ] = False,
    print_service: Annotated[
        Literal["launchd", "systemd"] | None,
        typer.Option(
            metavar="<str>",
            help="Print a service file, launchd or systemd, that runs this command.",
        ),
    ] = None,
) -> None:
    """Serve a model over HTTP, as OpenAI, Anthropic and Ollama do.

    It prints its address and three lines to try it. One line for each request goes to stderr.
    Ctrl-C ends all answers and stops; SIGTERM lets them finish for 5 seconds.
    """
    if missing := [one for one in PACKAGES if importlib.util.find_spec(one) is None]:
        raise MgmError(
            f"mgm serve needs {', '.join(missing)}: in the clone, uv tool install '.[serve]', or "
            "pip install '.[serve]'"
        )
    if print_service is not None:
        from mlx_gemma_mtp.cli.service import service_file

        print(service_file(print_service, context), end="")
        return
    from mlx_gemma_mtp.cli.engine import load_engine
    from mlx_gemma_mtp.server.log import log_trouble
    from mlx_gemma_mtp.server.server import leaving_at_sigterm, stop_with_parent
    from mlx_gemma_mtp.server.settings import Settings
    from mlx_gemma_mtp.server.sockets import allow_connections, bind, only_local

    if stop_when_parent_dies:
        stop_with_parent()
    for name in served_name or ():
        if not (name.isprintable() and name == name.strip() != ""):
            raise UsageError("--served-name takes printable text without spaces at its ends")
    if idle_unload is not None and idle_unload <= 0:
        raise UsageError("--idle-unload takes more than 0 seconds; leave it out to keep the model")
    pair = options.with_model(pair, model_name, options.given(context))
    origins = tuple(map(_origin, allow_origin or ()))
    sockets = bind(host, port)
    local = only_local(sockets)
    _check_key(api_key, host, local=local)
    allow_connections()
    log_trouble(as_json=log_json)
    with (
        leaving_at_sigterm(),
        load_engine(
            pair.chosen(),
            max_batch=max_batch,
            max_queue=max_queue,
            context=context_tokens,
            prefix_cache=_prefix_bytes(prefix_cache),
            idle_unload=idle_unload,
        ) as engine,
    ):
        warn_of_context(context_tokens, engine)
        _warm_up(engine)
        settings = Settings(
            served=tuple(served_name or names_for_clients(pair.model, engine)),
            host=host,
            local=local,
            hosts=tuple(allow_host or ()),
            origins=origins,
            api_key=api_key,
            body_limit=max_body * 1_000_000,
        )
        interrupted = _run(engine, settings, sockets, max_queue, quiet=quiet, log_json=log_json)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _run(
    engine: Engine,
    settings: Settings,
    sockets: list[socket],
    max_queue: int,
    *,
    quiet: bool,
    log_json: bool,
) -> bool:
    """Serve until a signal comes. Return True if that was Ctrl-C."""
    from mlx_gemma_mtp.server import announce
    from mlx_gemma_mtp.server.app import app_of
    from mlx_gemma_mtp.server.log import Log
    from mlx_gemma_mtp.server.server import Server
    from mlx_gemma_mtp.server.service import Service
    from mlx_gemma_mtp.server.sockets import listen, port_of
    from mlx_gemma_mtp.show import say

    service = Service(engine, settings)
    listen(settings.host, sockets)
    url = announce.url_of(settings.host, port_of(sockets))
    found = announce.facts(service, url, max_queue)

    def start() -> None:
        print(json.dumps(found) if log_json else announce.block(found, settings), flush=True)

    def report(text: str, interrupted: bool = False) -> None:
        if not log_json:  # whose reader takes JSON only
            say(options.interruption(text) if interrupted else f"mgm: {text}")

    def stop(interrupted: bool) -> None:
        status = engine.status
        under_way = status.waiting + status.reading + status.decoding
        answers = "1 answer" if under_way == 1 else f"{under_way} answers"
        what = "ending" if interrupted else "finishing"
        ends = f"{what} {answers}; Ctrl-C stops at once" if under_way else "stopping"
        report(ends, interrupted)

    server = Server(
        app_of(service, [] if quiet else [Log(service.model, as_json=log_json)]),
        on_start=start,
        on_stop=stop,
        cancel=engine.close,
        at_once=INTERRUPTED,
    )
    server.run(sockets)
    report("stopped")
    return server.was_interrupted


def _prefix_bytes(gigabytes: float | None) -> int:
    """Return --prefix-cache in bytes. What it keeps gives way to requests."""
    from mlx_gemma_mtp import device

    if gigabytes is None:
        return min(device.available() // 8, MOST_PREFIX_BYTES)
    return int(gigabytes * 1e9)


def _warm_up(engine: Engine) -> None:
    """Compile what the first answers need."""
    from mlx_gemma_mtp.progress import spinner

    engine.warm_up()
    with spinner("warming up"):
        while engine.warming:
            time.sleep(0.05)


def warn_of_context(asked: int | None, engine: Engine) -> None:
    """Log a warning if --context is more than the model can take."""
    if asked is not None and asked > engine.context:
        log.warning(
            "--context %s is more than this model's maximum: it is %s here",
            f"{asked:,}",
            f"{engine.context:,}",
        )


def names_for_clients(asked: str, engine: Engine) -> list[str]:
    """Return the names of a model for clients: what was typed if it is short, then its own.

    Never a path.
    """
    from mlx_gemma_mtp.files.names import is_folder

    own = engine.name or "model"
    typed = [] if "/" in asked or is_folder(asked) else [asked]
    return list(dict.fromkeys([*typed, own.rpartition("/")[2], own]))


def _check_key(key: str | None, host: str, *, local: bool) -> None:
    """Raise UsageError for a key that no header can hold, or if one is missing."""
    if key is None and not local:
        raise UsageError(
            f"--host {host} lets other machines in: set MGM_API_KEY to a key that they must send"
        )
    if key is not None and not (key.isascii() and key.isprintable() and key == key.strip() != ""):
        raise UsageError("the API key must be printable ASCII without spaces at its ends")


def _origin(given: str) -> str:
    """Return an origin as browsers send it. Raises UsageError."""
    origin = given.rstrip("/").lower()
    if origin in ("*", "null") or re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#]+", origin):
        return origin
    raise UsageError(f"--allow-origin takes one such as https://example.org, not {given!r}")
