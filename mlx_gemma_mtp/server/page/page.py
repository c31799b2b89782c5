"""The routes of the chat in the browser. Serves the files of this folder, and nothing else.

Doesn't know the API that the chat calls.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
HEADERS = {
    # Only what this server sends is loaded or called, and no string becomes HTML or a script.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # the browser asks each time if its copy is current
}


class File(NamedTuple):
    """A file of the page; `tag` changes with its content."""

    body: bytes
    type: str
    tag: str


def _files() -> dict[str, File]:
    files = {}
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in TYPES:
            body = path.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            files[path.name] = File(body, TYPES[path.suffix], tag)
    return files


FILES = _files()


def _serve(request: Request) -> Response:
    file = FILES.get(request.path_params.get("name", "index.html"))
    if file is None:
        raise HTTPException(404)
    headers = HEADERS | {"ETag": file.tag}
    known = request.headers.get("if-none-match", "").split(",")
    if file.tag in [tag.strip().removeprefix("W/") for tag in known]:
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.type)


routes = [Route("/", _serve), Route("/page/{name}", _serve)]
