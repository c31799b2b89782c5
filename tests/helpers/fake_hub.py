"""A Hub of our own: its cache on disk as huggingface_hub lays it out, and its server.

The server speaks the part of the protocol that a download needs; it can be gated, cut a file
short, or leave one unfinished.
"""

import hashlib
import json
import os
import shutil
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

NAME = "google/gemma-4-tiny-it"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Set by whoever runs the tests; the processes that they start are to see their own only.
VARIABLES = (
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
)

# The smallest configs that are Gemma 4's; with any bytes for weights they are downloaded and
# listed like a model.
LAYERS = {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "dtype": "bfloat16"}
TARGET_CONFIG = {
    "model_type": "gemma4_text",
    "hidden_size": 2560,
    "num_hidden_layers": 6,
    "vocab_size": 64,
    "hidden_size_per_layer_input": 0,
    **LAYERS,
}
DRAFTER_CONFIG = {
    "model_type": "gemma4_assistant",
    "backbone_hidden_size": 2560,
    "text_config": {"hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 64, **LAYERS},
}
Files = dict[str, bytes]


def weights(num_bytes: int, fill: bytes = b"w") -> bytes:
    """A safetensors file of one tensor."""
    entry = {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}
    header = json.dumps({"model.norm.weight": entry}).encode()
    return struct.pack("<Q", len(header)) + header + fill * num_bytes


def model_files(config: Mapping[str, object], num_bytes: int = 5000) -> Files:
    """A repository that passes for a model."""
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": weights(num_bytes),
        "README.md": b"of no use for running the model, and not downloaded",
        "original/consolidated.pth": b"nor is this",
    }


def folder_files(folder: Path) -> Files:
    """A folder's files, as a repository."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class HubCache:
    """A cache folder as huggingface_hub lays it out, and the calls that wanted the network."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.network: list[object] = []

    def repository(self, name: str) -> Path:
        return self.root / f"models--{name.replace('/', '--')}"

    def snapshot(self, name: str, commit: str = COMMIT) -> Path:
        return self.repository(name) / "snapshots" / commit

    def add(self, name: str, source: Path, *, without: tuple[str, ...] = ()) -> Path:
        """Put a checkpoint's files there, as links to blobs."""
        files = folder_files(source)
        return self.add_files(name, {path: files[path] for path in files if path not in without})

    def add_files(self, name: str, files: Files, commit: str = COMMIT, ref: str = "main") -> Path:
        """Put files there, as links to blobs; ref "": under their commit alone."""
        snapshot, blobs = self.snapshot(name, commit), self.repository(name) / "blobs"
        refs = self.repository(name) / "refs"
        for folder in (snapshot, blobs, refs):
            folder.mkdir(parents=True, exist_ok=True)
        if ref:
            (refs / ref).write_text(commit)
        for path, body in files.items():
            blob = blobs / hashlib.sha256(body).hexdigest()
            blob.write_bytes(body)
            link = snapshot / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        return snapshot

    def tree(self) -> dict[str, bytes]:
        """All that is there, by path."""
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }

    def clear(self) -> None:
        shutil.rmtree(self.root)
        self.root.mkdir()


def offline_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    """An empty cache, and a machine that is offline."""
    cache = HubCache(folder / "hub")
    cache.root.mkdir()

    def offline(*arguments: object, **_: object) -> None:
        cache.network.append(arguments)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache.root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr(socket.socket, "connect", offline)
    return cache


class FakeHub(ThreadingHTTPServer):
    """The server. What it is to do next is in its attributes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: dict[tuple[str, str], Files] = {}
        self.revisions: dict[tuple[str, str], str] = {}
        self.token: str | None = None  # that files ask for
        self.cut: dict[str, int] = {}  # path -> bytes after which its first answer ends
        self.stall: dict[str, int] = {}  # path -> bytes after which nothing comes any more
        self.stalled = threading.Event()
        self.requests: list[str] = []
        self.ranges: list[str] = []

    def add(self, name: str, files: Files, commit: str = COMMIT, revision: str = "main") -> None:
        self.commits[name, commit] = files
        self.revisions[name, revision] = self.revisions[name, commit] = commit

    def fetched(self) -> set[str]:
        """The paths whose content was asked for."""
        return {
            path.rpartition("/")[2]
            for path in self.requests
            if path.startswith("GET") and "/resolve/" in path
        }

    @contextmanager
    def running(self, home: Path) -> Iterator[dict[str, str]]:
        """Serve; the environment in which a process asks here, with its cache in `home`."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
        try:
            yield environment | {
                "HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
                "HF_HOME": str(home),
            }
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.server.requests.append(f"{self.command} {urlsplit(self.path).path}")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            name, what, rest = "/".join(parts[2:4]), parts[4:5], parts[5:]
        else:
            name, what, rest = "/".join(parts[:2]), parts[2:3], parts[3:]
        revision = rest[0] if rest else "main"
        commit = self.server.revisions.get((name, revision))
        if (name, "main") not in self.server.revisions:
            self.reply(b"", 404, {"X-Error-Code": "RepoNotFound"})
        elif commit is None:
            self.reply(b"", 404, {"X-Error-Code": "RevisionNotFound"})
        elif what == ["resolve"]:
            self.file(self.server.commits[name, commit], "/".join(rest[1:]), commit)
        else:
            files = self.server.commits[name, commit]
            self.reply(json.dumps(self.listing(name, commit, files, what)).encode())

    do_HEAD = do_GET

    def listing(self, name: str, commit: str, files: Files, what: list[str]) -> object:
        if what == ["tree"]:
            return [
                {"type": "file", "path": path, "size": len(body), "oid": etag(body)}
                for path, body in files.items()
            ]
        siblings = [
            {"rfilename": path, "size": len(body), "blobId": etag(body)}
            for path, body in files.items()
        ]
        config = json.loads(files.get("config.json", b"{}"))
        return {"id": name, "sha": commit, "siblings": siblings, "config": config}

    def file(self, files: Files, path: str, commit: str) -> None:
        token = self.server.token
        if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
            self.reply(b"", 403, {"X-Error-Code": "GatedRepo"})
            return
        body, status, headers = files[path], 200, {"ETag": f'"{etag(files[path])}"'}
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes=") and self.command == "GET":
            self.server.ranges.append(f"{path} {asked}")
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body, status = body[start:], 206
        self.reply(body, status, headers | {"X-Repo-Commit": commit}, path)

    def reply(
        self, body: bytes, status: int = 200, headers: Mapping[str, str] = {}, path: str = ""
    ) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | dict(headers)).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "GET":
            return
        if path in self.server.stall:
            self.wfile.write(body[: self.server.stall[path]])
            self.wfile.flush()
            self.server.stalled.set()
            with suppress(ConnectionResetError):
                self.rfile.read(1)  # until the client goes away
        else:
            self.wfile.write(body[: self.server.cut.pop(path, len(body))])

    def log_message(self, *_: object) -> None:
        pass


def etag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
