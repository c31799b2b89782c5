"""A fake Hub: its cache on disk as huggingface_hub lays it out, and its server.

The server speaks the part of the protocol that a download needs. It can be gated, cut a file short
or stall.
"""

import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from helpers.weight_files import real_weights, weights

NAME = "google/gemma-4-tiny-it"
DRAFTER = f"{NAME}-assistant"
COMMIT, NEWER = "01234567" * 5, "fedcba98" * 5
# The smallest Gemma 4 configs; with any bytes for weights they are downloaded and listed.
LAYERS = {
    "head_dim": 16,
    "global_head_dim": 16,
    "intermediate_size": 16,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "dtype": "bfloat16",
}
TARGET_CONFIG = {
    "model_type": "gemma4_text",
    "hidden_size": 2560,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_hidden_layers": 2,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    **LAYERS,
}
DRAFTER_CONFIG = {
    "model_type": "gemma4_assistant",
    "backbone_hidden_size": 2560,
    "text_config": {
        "hidden_size": 64,
        "layer_types": [*["sliding_attention"] * 3, "full_attention"],
        "num_hidden_layers": 4,
        **LAYERS,
    },
}
# More than 1 TB, in long rows: the plan of a load lists slices of rows.
HUGE_CONFIG = TARGET_CONFIG | {
    "hidden_size": 32 * 10**6,
    "vocab_size": 2 * 10**4,
    **dict.fromkeys(("head_dim", "global_head_dim", "intermediate_size"), 64),
}
Files = dict[str, bytes]


def model_files(config: Mapping[str, object], body: bytes = weights(5000)) -> Files:
    """Return the files of a repository that passes for a model; by default it cannot be loaded."""
    return {
        "config.json": json.dumps(config).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"version": "1.0"}',
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors": body,
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        **UNNEEDED,
    }


UNNEEDED: Files = {  # never downloaded
    "original/consolidated.pth": b"another format",
    "checkpoint-500/model.safetensors": weights(9000),
    "onnx/config.json": b"{}",
    "trainer_state.json": b"{}",
}
TARGET_FILES = model_files(TARGET_CONFIG, real_weights(TARGET_CONFIG))
DRAFTER_FILES = model_files(DRAFTER_CONFIG, real_weights(DRAFTER_CONFIG))


def needed(files: Files) -> Files:
    """Return the files that are downloaded."""
    return {path: body for path, body in files.items() if path not in UNNEEDED}


def folder_files(folder: Path) -> Files:
    """Return all files in a folder, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class HubCache:
    """A cache folder as huggingface_hub lays it out, and the attempts to use the network."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.network: list[object] = []

    def repository(self, name: str) -> Path:
        return self.root / f"models--{name.replace('/', '--')}"

    def snapshot(self, name: str, commit: str = COMMIT) -> Path:
        return self.repository(name) / "snapshots" / commit

    def add(
        self,
        name: str,
        files: Files,
        commit: str = COMMIT,
        ref: str = "main",
        listed: Iterable[str] | None = None,
    ) -> Path:
        """Add files, as links to blobs; ref "": under their commit only.

        listed: the paths that the Hub listed, which its client also keeps.
        """
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
        if listed is not None:
            trees = self.repository(name) / "trees"
            trees.mkdir(exist_ok=True)
            entries = {path: {"size": 1, "blob_id": "0"} for path in listed}
            listing = json.dumps({"format_version": 1, "files": entries})
            (trees / f"{commit}.json").write_text(listing)
        return snapshot


class FakeHub(ThreadingHTTPServer):
    """The server. Its attributes say how it behaves."""

    daemon_threads = True
    cache: HubCache  # of whoever asks here while it runs
    environment: dict[str, str]  # of a process that does

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: dict[tuple[str, str], Files] = {}
        self.revisions: dict[tuple[str, str], str] = {}
        self.token: str | None = None  # required for files
        self.sizes: dict[str, int] = {}  # path -> what the listing says, instead of the truth
        self.cut: dict[str, int] = {}  # path -> bytes after which its first answer ends
        self.stall: dict[str, int] = {}  # path -> bytes after which it sends nothing more
        self.stalled = threading.Event()
        self.resume = threading.Event()  # sends the rest of what was stalled
        self.ranged = True  # False: it ignores which bytes were asked for
        self.refusals: dict[str, list[tuple[int, dict[str, str]]]] = {}  # path -> first answers
        self.linked = False  # True: content is at another address, which expires when it was used
        self.links: set[str] = set()
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.headers: list[str] = []  # ranges with an end

    def add(self, name: str, files: Files, commit: str = COMMIT, revision: str = "main") -> None:
        self.commits[name, commit] = files
        self.revisions[name, revision] = self.revisions[name, commit] = commit

    def fetched(self) -> set[str]:
        """Return the paths whose content was requested."""
        return {
            path.rpartition("/")[2]
            for path in self.requests
            if path.startswith("GET") and "/resolve/" in path
        }

    @contextmanager
    def running(self, home: Path) -> Iterator[dict[str, str]]:
        """Serve; yields the environment of a process that asks here, with its cache in `home`."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.cache = HubCache(home / "hub")
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("HF_") and not key.lower().endswith("_proxy")
        } | {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}", "HF_HOME": str(home)}
        self.environment["HF_HUB_CACHE"] = str(self.cache.root)
        try:
            yield self.environment
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        parts = unquote(address.path).strip("/").split("/")
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
            self.resolve(name, "/".join(rest[1:]), commit, address.query)
        else:
            files = self.server.commits[name, commit]
            # As in a model's listing and in a folder's: the client takes the keys that it knows.
            listed: list[dict[str, object]] = [
                {"type": "file", "path": path, "rfilename": path}
                | {"oid": etag(body), "blobId": etag(body)}
                | {"size": self.server.sizes.get(path, len(body))}
                | ({"lfs": lfs(body)} if path.endswith(".safetensors") else {})
                for path, body in files.items()
            ]
            config = json.loads(files.get("config.json", b"{}"))
            model = {"id": name, "sha": commit, "siblings": listed, "config": config}
            self.reply(json.dumps(listed if what == ["tree"] else model).encode())

    do_HEAD = do_GET

    def resolve(self, name: str, path: str, commit: str, query: str) -> None:
        """Send a file, where it is, or a refusal."""
        refusals = self.server.refusals.get(path)
        if self.command == "GET" and refusals and self.headers.get("Range", "-").endswith("-"):
            self.reply(b"", *refusals.pop(0))
        elif self.command == "GET" and self.server.linked and not query:
            link = f"{urlsplit(self.path).path}?signature={len(self.server.links)}"
            self.server.links.add(link)
            self.reply(b"", 302, {"Location": link})
        elif query and self.path not in self.server.links:
            self.reply(b"", 403)
        else:
            self.server.links.discard(self.path)
            self.file(self.server.commits[name, commit], path, commit)

    def file(self, files: Files, path: str, commit: str) -> None:
        token = self.server.token
        if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
            self.reply(b"", 403, {"X-Error-Code": "GatedRepo"})
            return
        body, status, headers = files[path], 200, {"ETag": f'"{etag(files[path])}"'}
        asked = self.headers.get("Range", "")
        start, _, end = asked.removeprefix("bytes=").partition("-")
        if asked and end:  # of a header
            self.server.headers.append(f"{path} {asked}")
            self.server.requests.pop()
            path = ""
        elif asked:
            self.server.ranges.append(f"{path} {asked}")
        if asked and self.server.ranged:
            last = min(int(end or len(body)), len(body) - 1)
            headers["Content-Range"] = f"bytes {start}-{last}/{len(body)}"
            body, status = body[int(start) : last + 1], 206
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
            sent = self.server.stall[path]
            self.wfile.write(body[:sent])
            self.wfile.flush()
            self.server.stalled.set()
            if self.server.resume.wait(20):
                self.wfile.write(body[sent:])
        else:
            self.wfile.write(body[: self.server.cut.pop(path, len(body))])

    def log_message(self, *_: object) -> None:
        pass


def etag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def lfs(body: bytes) -> dict[str, object]:
    """Return what a listing says of a large file."""
    return {"oid": etag(body), "sha256": etag(body), "size": len(body), "pointerSize": 134}


@pytest.fixture(name="hub_cache")
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    """An empty cache, no network, and own folders for the rest."""
    cache = HubCache(tmp_path / "hub")
    cache.root.mkdir()

    def offline(*arguments: object, **_: object) -> None:
        cache.network.append(arguments)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.chdir(tmp_path)  # no folder there has the name of a model
    for variable in ("MGM_CACHE_DIR", "MGM_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "mgm"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache.root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr(socket.socket, "connect", offline)
    return cache


@pytest.fixture(name="online")
def hub_for_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub for this process, and an empty cache."""
    server = FakeHub()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with server.running(tmp_path):
        yield server
