"""The files of the page: how they are served, that they need nothing else, and their modules."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from mlx_gemma_mtp.server.page import page

FOLDER = Path(page.__file__).parent
MODULES = Path(__file__).parent / "modules"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(Starlette(routes=page.routes)) as client:
        yield client


def test_every_file_of_the_page_is_served_with_its_type(client: TestClient) -> None:
    served = {path.name for path in FOLDER.iterdir() if path.suffix in page.TYPES}
    assert {*page.FILES} == served
    for name in served:
        answer = client.get(f"/page/{name}")
        assert answer.content == (FOLDER / name).read_bytes()
        assert answer.headers["content-type"].startswith(page.TYPES[Path(name).suffix])
    assert client.get("/").content == (FOLDER / "index.html").read_bytes()


@pytest.mark.parametrize(
    "name", ["page.py", "__init__.py", "../page.py", "%2e%2e/page.py", "", "x"]
)
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/page/{name}").status_code == 404


def test_a_copy_that_is_current_is_not_sent_again(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["cache-control"] == "no-cache"
    tag = answer.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = client.get("/", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
    assert client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_policy_allows_nothing_from_outside_and_nothing_inline(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    sources = dict(part.split(maxsplit=1) for part in policy.split("; "))
    assert sources["default-src"] == "'none'"
    for kind in ("script", "style", "img", "connect"):
        assert sources[f"{kind}-src"] == "'self'"
    assert "unsafe" not in policy
    assert sources["frame-ancestors"] == "'none'"


def test_the_page_names_only_its_own_files() -> None:
    texts = {name: file.body.decode() for name, file in page.FILES.items()}
    html = texts["index.html"]
    named = set(re.findall(r'(?:src|href)="page/([^"]+)"', html))
    assert len(re.findall(r'(?:src|href)="(?!#)', html)) == len(named)
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=", html)
    for name, text in texts.items():
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([^"]+)"', text))
            assert not re.search(r"innerHTML|insertAdjacentHTML|\beval\(|document\.write", text)
        if name.endswith(".css"):
            assert "url(" not in text
            assert "@import" not in text
    assert named == {*texts} - {"index.html"}  # each is used, and there


@pytest.mark.parametrize("path", sorted(MODULES.glob("*.mjs")), ids=lambda path: path.stem)
def test_modules(path: Path, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node.js: the modules are only tested in the browser")
    for source in (*FOLDER.glob("*.js"), path):
        shutil.copy(source, tmp_path)
    (tmp_path / "package.json").write_text(json.dumps({"type": "module"}))
    run = [node, "--test", path.name]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"^# pass [1-9]", done.stdout, re.MULTILINE), done.stdout
