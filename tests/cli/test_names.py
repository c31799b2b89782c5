"""How a model is named on the command line: sizes, the default, unknown names, Tab."""

import re
import shutil
from pathlib import Path

import pytest
from mlx_gemma_mtp.bench.synthetic import settings
from mlx_gemma_mtp.convert.formats import AFFINE_BITS

from helpers.command import GREEDY, SUM, SUM_ANSWER, Here, assert_one_line, assert_plain
from helpers.fake_hub import (
    HubCache,
    empty_hub_cache,  # noqa: F401 - the fixture `hub_cache`
    folder_files,
    model_files,
)
from helpers.weight_files import few_weights
from mlx_gemma_mtp import load
from mlx_gemma_mtp.cli import complete, options
from mlx_gemma_mtp.errors import CheckpointError, ModelNotFoundError
from mlx_gemma_mtp.files.choice import choose
from mlx_gemma_mtp.files.find import find_pair
from mlx_gemma_mtp.files.names import DEMO, check_format, check_target, drafter_called
from mlx_gemma_mtp.files.published import SHORT, SIZES, size_of
from mlx_gemma_mtp.files.weights import CONVERTED_ONLY

GB = 10**9
E4B = "mlx-community/gemma-4-e4b-it-{}bit"


def put(cache: HubCache, name: str, bits: int = 16) -> None:
    """Add a target of a published shape to the cache."""
    size = next(size for size in SIZES if size.kind.casefold() in name.casefold())
    files = model_files(settings(size.kind)[0], few_weights(size.hidden_size, bits))
    cache.add(name, files | {"tokenizer.json": b"{}", "chat_template.jinja": b"x"})


@pytest.mark.parametrize(
    ("available", "bits", "expected"),
    [
        (9, None, (E4B.format(8), None)),
        (7, None, (E4B.format(4), None)),
        (100, None, (E4B.format(8), None)),
        (100, 4, (E4B.format(4), None)),
        (1, None, (E4B.format(4), None)),  # the smallest, which does not fit
    ],
)
def test_a_size_means_the_best_published_checkpoint_that_fits(
    hub_cache: HubCache, available: int, bits: int | None, expected: tuple[str, int | None]
) -> None:
    found = choose("e4b", bits=bits, available=available * GB)
    assert found is not None
    assert (found.name, found.bits) == expected
    assert found.fits == (available > 1)
    line = str(found)
    assert line.startswith(f"e4b: {found.name} (")
    assert hub_cache.network == []


def test_a_size_means_a_cached_checkpoint_that_fits_before_any_other(hub_cache: HubCache) -> None:
    put(hub_cache, "google/gemma-4-E4B")  # not instruction-tuned
    put(hub_cache, "me/gemma-4-e4b-it-medicine-4bit", 4)  # another model
    put(hub_cache, "google/gemma-4-31B-it")

    def chosen(available: int, bits: int | None = None) -> tuple[str, int | None]:
        found = choose("E4B", bits=bits, available=available * GB)
        assert found is not None
        return found.name, found.bits

    assert chosen(100) == (E4B.format(8), None)
    put(hub_cache, "unsloth/gemma-4-E4B-it-UD-MLX-4bit", 4)
    assert chosen(100) == chosen(100, 4) == ("unsloth/gemma-4-E4B-it-UD-MLX-4bit", None)
    assert chosen(100, 8) == (E4B.format(8), None)
    put(hub_cache, "google/gemma-4-E4B-it")
    assert chosen(100) == ("google/gemma-4-E4B-it", None)
    assert chosen(100, 8) == ("google/gemma-4-E4B-it", 8)
    assert chosen(9) == ("unsloth/gemma-4-E4B-it-UD-MLX-4bit", None)
    put(hub_cache, "zed/gemma-4-E4B-it-8bit", 8)
    assert chosen(9) == ("zed/gemma-4-E4B-it-8bit", None)  # more bits
    assert hub_cache.network == []


def test_the_line_says_if_a_checkpoint_is_quantized_and_if_it_does_not_fit(
    hub_cache: HubCache,
) -> None:
    put(hub_cache, "google/gemma-4-26B-A4B-it")
    assert str(choose("26b", available=30 * GB)) == (
        "26b: google/gemma-4-26B-A4B-it, quantized to 8 bits (needs 28.6 of 30.0 GB of memory)"
    )
    assert str(choose("31b", available=10 * GB)).endswith(
        "(needs 21.5 GB, 10.0 GB available; about 18 GB to download)"
    )


def test_memory_that_others_hold_now_changes_no_choice_but_is_shown(hub_cache: HubCache) -> None:
    idle, busy = (choose("e4b", available=9 * GB, free=free * GB) for free in (9, 5))
    assert idle is not None
    assert busy is not None
    assert idle.name == busy.name
    assert idle.fits
    assert busy.fits
    assert "free now" not in str(idle)
    assert "needs 8.8 of 9.0 GB of memory, but 5.0 GB is free now; about 8 GB" in str(busy)


def test_a_size_as_the_drafter_means_googles(hub_cache: HubCache, mgm_here: Here) -> None:
    for name in ("e4b", "gemma4:e4b", "E4B-it"):
        assert drafter_called(name) == "google/gemma-4-E4B-it-assistant"
    done = mgm_here("generate", SUM, "--drafter", "e4b")
    assert_one_line(done, 3, "google/gemma-4-E4B-it-assistant is not downloaded")
    for name in ("auto", "none", "demo", "me/mine", None, DEMO):
        assert drafter_called(name) == name


def test_a_wrong_name_of_a_drafter_gets_names_of_drafters(mgm_here: Here) -> None:
    for name, word in {
        "nosuch": "such as google/gemma-4-E4B-it-assistant, auto or none",
        "gemma-4-e4b-it-asistant": "did you mean google/gemma-4-E4B-it-assistant?",
    }.items():
        assert_one_line(mgm_here("generate", SUM, "--drafter", name), 3, word)
        with pytest.raises(ModelNotFoundError, match=re.escape(word)):
            load("demo", name)


def test_a_target_is_refused_before_a_word_about_drafters(
    hub_cache: HubCache, mgm_here: Here, tmp_path: Path
) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    assert_one_line(mgm_here("generate", SUM, "-m", "llama"), 1, "not a Gemma 4 model")
    shutil.copytree(DEMO, tmp_path / "alone")
    done = mgm_here("generate", SUM, "-m", "alone", *GREEDY)
    assert (done.returncode, done.stdout) == (0, f"{SUM_ANSWER}\n")
    assert done.stderr == (
        "No drafter in alone, next to it or in the Hub's cache: running without drafts.\n"
    )


def test_a_name_below_a_folder_that_is_here_is_said_to_be_no_folder(
    hub_cache: HubCache, mgm_here: Here, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    for name, word in {"models/typo": "models/typo is not a folder", "me/it": "not down"}.items():
        assert_one_line(mgm_here("generate", SUM, "-m", name), 3, word)


def test_a_file_in_place_of_a_folder_is_said_to_be_one(
    hub_cache: HubCache, mgm_here: Here, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    for name, code, word in (
        ("notes.txt", 3, "notes.txt is a file: give the folder that holds the model"),
        ("models/weights", 3, "models/weights is a file: give the folder"),  # also a Hub name
        ("models/model.gguf", 1, "GGUF files are not supported"),
    ):
        (tmp_path / name).touch()
        for path in (name, f"./{name}", str(tmp_path / name)):
            for line in (
                ("generate", SUM, "-m", path),
                ("generate", SUM, "--drafter", path),
                ("estimate", path),
                ("pull", path),
                ("verify", path),
            ):
                assert_one_line(mgm_here(*line), code, word)
    assert hub_cache.network == []


def test_an_error_about_the_default_model_names_the_variable(
    mgm_here: Here, hub_cache: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGM_MODEL", "zzz")
    assert_one_line(mgm_here("generate", SUM), 3, "(MGM_MODEL is 'zzz')")
    done = mgm_here("generate", SUM, "-m", "zzz")
    assert_one_line(done, 3, "no folder 'zzz'")
    assert "MGM_MODEL" not in done.stderr


def test_files_that_git_left_as_pointers_are_called_so(mgm_here: Here, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for pattern in ("*.safetensors", "config.json"):
        folder = shutil.copytree(DEMO, tmp_path / pattern.strip("*."))
        for path in folder.glob(pattern):
            path.write_text(pointer)
        done = mgm_here("generate", SUM, "-m", str(folder), "--drafter", "demo")
        assert_one_line(done, 1, "git lfs pull")


def test_bits_that_only_convert_writes_are_said_to_be(mgm_here: Here) -> None:
    done = mgm_here("generate", SUM, "-m", "demo", "--bits", "3")
    assert_one_line(done, 2, "mgm convert --bits 3 writes such a model")
    assert "convert" not in mgm_here("generate", SUM, "-m", "demo", "--bits", "7").stderr
    assert {*map(str, CONVERTED_ONLY)} == {*AFFINE_BITS} - {"4", "8"}


def test_other_names_are_no_sizes(hub_cache: HubCache, tmp_path: Path) -> None:
    (tmp_path / "e4b").mkdir()
    for name in ("demo", "e4b", "google/gemma-4-E4B-it", "e4b-8bit", ""):  # e4b is a folder here
        assert choose(name) is None
    assert hub_cache.network == []


def test_an_unknown_name_gets_the_one_that_was_meant(hub_cache: HubCache) -> None:
    for name, word in {
        "e4c": "did you mean e4b?",
        "gemma-4-e4b-it-4bit": "did you mean mlx-community/gemma-4-e4b-it-4bit?",
        "gemma-4-E4B-it": "did you mean google/gemma-4-E4B-it?",
        "https://huggingface.co/google/gemma-4-31B-it/tree/main": "google/gemma-4-31B-it?",
        "hf.co/me/model": "did you mean me/model?",
        "gemma4": f"give a size ({', '.join(SHORT)}), a folder, a Hub name",
        "llama.gguf": "GGUF files are not supported; use the original checkpoint",
        "gemma-4-12b-it-Q4_K_M.GGUF": "take mlx-community/gemma-4-12B-it-4bit",
        "model.safetensors": "is a file: give the folder",
    }.items():
        with pytest.raises((CheckpointError, ModelNotFoundError), match=re.escape(word)):
            find_pair(name, "auto")
    assert hub_cache.network == []


def test_weights_that_cannot_be_loaded_are_refused_before_they_are_downloaded(
    hub_cache: HubCache,
) -> None:
    for name, word in {
        "unsloth/gemma-4-E2B-it-GGUF": "take mlx-community/gemma-4-e2b-it-4bit",
        "google/gemma-4-E4B-it-qat-w4a16-ct": "E4B-it-qat-q4_0-unquantized with --bits 4",
        "me/gemma-4-31B-it-AWQ": "AWQ weights are not supported",
        "me/gemma-4-31B-it-FP8-dynamic": "FP8 weights are not supported",
        "google/gemma-3-4b-it": "not a Gemma 4 model",
        "unsloth/gemma-3n-E4B-it": "not a Gemma 4 model",
        "google/gemma-4-E4B-it-assistant": "run its target, such as google/gemma-4-E4B-it",
        "mlx-community/gemma-4-E2B-it-assistant-bf16": "such as google/gemma-4-E2B-it",
        "google/gemma-4-31B-it-qat-q4_0-unquantized-assistant": "gemma-4-31B-it-qat-q4_0-unqua",
    }.items():
        with pytest.raises(CheckpointError, match=re.escape(word)):
            find_pair(name, "auto")
    assert hub_cache.network == []
    for size in SIZES:
        for name in (size.original, size.quantized(4), size.drafter(qat=True)):
            check_format(name)
    for name in ("mlx-community/gemma-4-12B-it-mxfp8", "me/gemma-4-E4B-it-like-gemma-3"):
        check_format(name)
    check_target("me/gemma-4-E4B-it-coding-assistant")


def test_the_model_may_stand_anywhere_and_the_prompt_too(
    mgm_here: Here, hub_cache: HubCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGM_MODEL", "none/of-these")
    for line in (
        ["generate", "-m", "demo", "-p", SUM],
        ["generate", "--model", "demo", "--prompt", SUM],
        ["generate", SUM, "-m", "demo"],
    ):
        done = mgm_here(*line, *GREEDY)
        assert_plain(done)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{SUM_ANSWER}\n", "")
    for line in (["chat", "demo"], ["run", "demo"], ["chat", "-m", "demo"]):
        done = mgm_here(*line, *GREEDY, stdin=f"{SUM}\n")
        assert_plain(done)
        assert (done.returncode, done.stderr) == (0, "")
        assert SUM_ANSWER in done.stdout
    for line, word in {
        ("chat", "demo", "-m", "demo"): "two models",
        ("generate", SUM, "-p", SUM): "several prompts",
    }.items():
        done = mgm_here(*line)
        assert done.returncode == 2
        assert word in done.stderr
    assert hub_cache.network == []


def test_the_default_model_comes_from_the_environment(
    mgm_here: Here, hub_cache: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGM_MODEL", "me/tiny")
    hub_cache.add("me/tiny", folder_files(DEMO))
    done = mgm_here("generate", SUM, "--drafter", "demo", *GREEDY)
    assert (done.returncode, done.stdout) == (0, f"{SUM_ANSWER}\n"), done.stderr
    assert options.Pair().model == "me/tiny"
    monkeypatch.setenv("MGM_MODEL", "")
    assert options.Pair().model == "demo"
    assert hub_cache.network == []


def test_a_size_on_the_command_line_becomes_a_checkpoint_and_is_shown(
    hub_cache: HubCache, capsys: pytest.CaptureFixture[str]
) -> None:
    put(hub_cache, "google/gemma-4-E2B-it")
    pair = options.Pair(model="gemma4:e2b", drafter="none", force=True).chosen()
    assert (pair.model, pair.drafter, pair.force) == ("google/gemma-4-E2B-it", "none", True)
    assert capsys.readouterr().err.startswith("gemma4:e2b: google/gemma-4-E2B-it")
    for same in (options.Pair(model="demo"), options.Pair(model=str(DEMO))):
        assert same.chosen() == same
    assert capsys.readouterr().err == ""


def test_converting_takes_the_unquantized_checkpoint_of_a_size(
    hub_cache: HubCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert options.original("26b") == "google/gemma-4-26B-A4B-it"
    assert capsys.readouterr().err == "26b: google/gemma-4-26B-A4B-it\n"
    (tmp_path / "26b").mkdir()
    for same in ("26b", "demo", "me/26b"):
        assert options.original(same) == same
    assert capsys.readouterr().err == ""
    assert hub_cache.network == []


def test_load_takes_a_size_too(hub_cache: HubCache) -> None:
    with pytest.raises(ModelNotFoundError, match="mlx-community/gemma-4-31b-it-4bit is not down"):
        load("31b", bits=4)
    assert hub_cache.network


def test_short_forms_of_help_and_list_work(mgm_here: Here, hub_cache: HubCache) -> None:
    for line in (["-h"], ["chat", "-h"], ["sessions", "rm", "-h"]):
        assert mgm_here(*line).stdout.startswith("Usage: mgm")
    assert mgm_here("ls").stdout == mgm_here("list").stdout
    assert hub_cache.network == []


def test_commands_are_listed_with_whole_sentences(mgm_here: Here) -> None:
    commands = mgm_here("--help").stdout.partition("Commands:")[2]
    assert "chat" in commands
    assert "..." not in commands


def test_tab_offers_models_drafters_and_sizes(hub_cache: HubCache) -> None:
    put(hub_cache, "google/gemma-4-E4B-it")
    drafter = SIZES[1].drafter()
    hub_cache.add(drafter, model_files(settings("E4B")[1]))
    assert complete.models("") == [*SHORT, "demo", "google/gemma-4-E4B-it"]
    assert complete.models("G") == ["google/gemma-4-E4B-it"]
    assert complete.drafters("") == ["auto", "none", drafter]
    assert complete.sizes("e") == ["e2b", "e4b"]
    assert [size_of(one) for one in complete.sizes("")] == [*SIZES]
    assert complete.repositories("google/") == ["google/gemma-4-E4B-it", drafter]
    assert complete.sessions("no such") == []


def test_the_shell_gets_what_tab_offers(mgm_here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    for line, offered in {"mgm chat --model e": "e2b", "mgm run 26": "26b"}.items():
        monkeypatch.setenv("_MGM_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
        assert offered in mgm_here().stdout.splitlines()
