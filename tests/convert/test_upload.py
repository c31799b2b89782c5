"""Converting and the Hub: uploads come after the work, a dry run downloads headers only."""

import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import errors
from mlx_gemma_mtp.convert.conversion import prepare
from mlx_gemma_mtp.convert.manifest import read_manifest
from mlx_gemma_mtp.convert.plan import Options

from helpers.checkpoints import PairPaths, make_pair
from helpers.command import Here
from helpers.converted import MOE, assert_refused
from helpers.fake_hub import COMMIT, NAME, FakeHub, folder_files

Uploads = list[tuple[str, str]]  # repository, kind of the folder's drafter


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> Uploads:
    """Uploads go to this list."""
    found: Uploads = []

    class FakeApi:
        def whoami(self) -> dict[str, str]:
            return {"name": "me"}

        def create_repo(self, repository: str, *, exist_ok: bool) -> str:
            assert exist_ok
            return f"https://hub/{repository}"

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
            assert commit_message
            found.append((repo_id, read_manifest(folder_path / "drafter").kind))

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    return found


@pytest.mark.usefixtures("uploads")
def test_an_impossible_upload_is_refused_before_the_work(
    mgm_here: Here, tiny: PairPaths, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("convert", tiny.target, "--out", out, "--upload-repo")
    assert_refused(mgm_here(*command, "not/a/name"), 2, "not a Hub repository name")
    refuse = Mock(side_effect=errors.LocalTokenNotFoundError("Many\nlines"))
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", refuse)
    assert_refused(mgm_here(*command, "me/tiny"), 1, "HF_TOKEN")
    assert list(out.parent.iterdir()) == []


def test_a_finished_conversion_is_uploaded_and_kept_if_that_fails(
    mgm_here: Here, tiny: PairPaths, out: Path, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("convert", tiny.target, "--out", out, "--force", "--upload-repo", "me/tiny")
    done = mgm_here(*command)
    assert (done.returncode, done.stdout) == (0, f"{out}\n")
    assert uploads == [("me/tiny", "drafter")]
    assert done.stderr.splitlines()[-1] == "uploaded to https://hub/me/tiny"

    fail = Mock(side_effect=errors.HTTPError("peer\nclosed connection"))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", fail)
    done = mgm_here(*command)
    assert (done.returncode, done.stdout) == (1, f"{out}\n")
    line = done.stderr.splitlines()[-1]
    assert "peer closed connection" in line
    assert "hf upload me/tiny" in line
    assert (out / "manifest.json").exists()


DRY_RUN = """
import sys
from mlx_gemma_mtp.convert.conversion import prepare
from mlx_gemma_mtp.convert.plan import Options
for plan in prepare(sys.argv[1], Options(), headers_only=True):
    print(plan.kind, plan.source.origin.revision, plan.nbytes, plan.shards)
"""


@pytest.mark.torch
def test_a_dry_run_downloads_headers_and_no_weights(tmp_path: Path, seed: int) -> None:
    pair = make_pair(MOE, tmp_path / "pair", seed)
    server = FakeHub()
    server.add(NAME, folder_files(pair.target))
    server.add(f"{NAME}-assistant", folder_files(pair.drafter))
    with server.running(tmp_path / "home") as environment:
        command = [sys.executable, "-c", DRY_RUN, NAME]
        printed = subprocess.check_output(command, env=environment, text=True, timeout=120)
    assert printed.splitlines() == [
        f"{plan.kind} {COMMIT} {plan.nbytes} {plan.shards}"
        for plan in prepare(pair.target, Options())
    ]
    asked = {line for line in server.ranges if line.startswith("model.safetensors")}
    assert asked == {"model.safetensors bytes=0-100000"}
    assert not list((tmp_path / "home").rglob("*.safetensors"))
