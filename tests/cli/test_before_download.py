"""What a command says and asks before it downloads a model."""

import re

import pexpect
import pytest

from helpers.command import MGM, Done, Here, assert_one_line, assert_plain, environment
from helpers.fake_hub import (
    DRAFTER,
    DRAFTER_FILES,
    HUGE_CONFIG,
    NAME,
    TARGET_CONFIG,
    TARGET_FILES,
    FakeHub,
    hub_for_this_process,  # noqa: F401 - the fixture `online`
    model_files,
)
from helpers.weight_files import real_weights
from mlx_gemma_mtp.files.names import DEMO, DEMO_DRAFTER


@pytest.fixture
def large(online: FakeHub) -> FakeHub:
    """A Hub with a pair that is said to have 2 GB."""
    online.add(NAME, TARGET_FILES)
    online.add(DRAFTER, DRAFTER_FILES)
    online.sizes["model.safetensors"] = 10**9
    return online


@pytest.fixture
def huge(online: FakeHub) -> FakeHub:
    """A Hub with a model that no machine can run."""
    online.add(NAME, model_files(HUGE_CONFIG, real_weights(HUGE_CONFIG, header_only=True)))
    return online


COMMANDS = {
    "generate": ("generate", "--model", NAME, "Hi"),
    "chat": ("chat", NAME),
    "bench": ("bench", "--model", NAME),
    "convert": ("convert", NAME, "--out", "out"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_terminal_a_large_download_needs_yes(
    large: FakeHub, mgm_here: Here, command: str
) -> None:
    done = mgm_here(*COMMANDS[command])
    assert_one_line(done, 2, f"{NAME} is not downloaded (2.0 GB): add --yes")
    assert large.fetched() == {"config.json"}
    assert not large.cache.root.exists()


@pytest.mark.parametrize("command", [*COMMANDS][:3])
def test_a_model_that_cannot_run_here_is_refused_before_it_is_downloaded(
    huge: FakeHub, mgm_here: Here, command: str
) -> None:
    done = mgm_here(*COMMANDS[command], "--yes")
    assert_plain(done)
    assert done.returncode == 4
    assert re.search(r"^Memory: \d\.\d TB; .* here; more than any Mac has$", done.stderr, re.M)
    assert re.search(rf"^mgm: {NAME}, .* needs .* TB of memory, but .*--force", done.stderr, re.M)
    assert huge.fetched() == {"config.json"}


def test_a_drafter_of_this_size_that_does_not_fit_is_not_downloaded(
    online: FakeHub, mgm_here: Here
) -> None:
    online.add(
        "me/finetune",
        model_files(config := TARGET_CONFIG | {"vocab_size": 96}, real_weights(config)),
    )
    online.add("google/gemma-4-E4B-it-assistant", DRAFTER_FILES)
    done = mgm_here("pull", "me/finetune")
    assert done.returncode == 0, done.stderr
    assert "The Hub has no drafter for me/finetune" in done.stderr
    assert done.stdout.count("\n") == 1


def test_pull_of_a_model_that_cannot_run_here_needs_yes(huge: FakeHub, mgm_here: Here) -> None:
    done = mgm_here("pull", NAME)
    assert done.returncode == 4
    assert done.stderr.endswith(f"mgm: {NAME} was not downloaded: add --yes to do it anyway\n")
    assert huge.fetched() == {"config.json"}
    assert mgm_here("pull", NAME, "--yes").returncode == 0
    assert "model.safetensors" in huge.fetched()


def test_a_checkpoint_that_could_not_be_loaded_is_refused_before_it_is_downloaded(
    online: FakeHub, mgm_here: Here
) -> None:
    online.add(NAME, model_files(TARGET_CONFIG))
    done = mgm_here("generate", "--model", NAME, "Hi", "--yes")
    assert done.returncode == 1
    assert re.search(rf"^mgm: {NAME}: tensor .* is missing", done.stderr, re.MULTILINE)
    assert online.fetched() == {"config.json"}


@pytest.mark.slow
def test_a_small_download_is_not_asked_for_and_the_command_goes_on(
    online: FakeHub, mgm_here: Here
) -> None:
    for name, folder in ((NAME, DEMO), (DRAFTER, DEMO_DRAFTER)):
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        online.add(name, files)
    shown = [answer_of(mgm_here) for _ in range(2)]
    assert shown[0].stdout == shown[1].stdout == "17 + 25 = 42\n"
    assert re.search(r"^Download: 21\.\d MB; .*\nMemory: .* 8 GB\n", shown[0].stderr, re.MULTILINE)
    assert shown[1].stderr == ""


def answer_of(mgm_here: Here) -> Done:
    done = mgm_here("generate", "--model", NAME, "--temperature", "0", "What is 17 + 25?")
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["n", "\x04"])
def test_at_a_terminal_a_large_download_is_asked_for(large: FakeHub, answer: str) -> None:
    variables = environment() | large.environment | {"COLUMNS": "80"}
    child = pexpect.spawn(MGM[0], [*MGM[1:], "chat", NAME], env=variables, encoding="utf-8")
    child.expect_exact("Download? [Y/n]", timeout=60)
    shown = child.before
    for word in (f"{NAME} ", f"{DRAFTER} ", "Download: 2.0 GB;", "Memory: ", "smallest Mac: 8 GB"):
        assert word in shown
    child.send(answer if answer == "\x04" else f"{answer}\n")
    child.expect(pexpect.EOF, timeout=60)
    assert child.wait() == 1
    assert large.fetched() == {"config.json"}
