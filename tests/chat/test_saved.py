"""Conversations on the disk: saved as they come, read again, listed and removed."""

import os
import sys
from pathlib import Path

import pytest

from helpers.command import Here, assert_one_line, found
from helpers.talk import Talk, reply
from mlx_gemma_mtp.chat import store, transcript
from mlx_gemma_mtp.chat.transcript import Conversation, Models, Transcript
from mlx_gemma_mtp.cli.paths import laid_out
from mlx_gemma_mtp.cli.sessions import HEADER, rows
from mlx_gemma_mtp.errors import MgmError, UsageError
from mlx_gemma_mtp.files import journal
from mlx_gemma_mtp.files.names import DEMO
from mlx_gemma_mtp.show import table

ODD = "x[i] = y[j] [bold]a[/bold] *b* \\n \x1b[1m {c} é 🦊\r\n\tend"


def test_a_conversation_that_is_read_again_is_the_same() -> None:
    talk = Talk(*(reply(f"answer {number}", thought="hm") for number in range(9)))
    talk.run("/system Be kind.")
    talk.ask(ODD, "second")
    talk.run("/undo")
    talk.ask("third")
    talk.run("/regen")
    before = talk.chat.transcript.conversation
    path = store.paths()[0]
    with pytest.raises(UsageError, match="open in another mgm"):
        Transcript.reopened(path)
    talk.chat.transcript.close()
    with path.open("ab") as file:
        file.write(b'{"message": {"role": "us')  # as after a crash
    again = Transcript.reopened(path)
    assert again.conversation == before
    assert [content for _, content in talk.messages] == [ODD, "answer 0", "third", "answer 3"]
    again.ask("fourth")
    assert transcript.load(path) == again.conversation
    assert path.stat().st_mode & 0o77 == 0  # only the user can read it


def test_a_full_disk_is_reported_once_and_the_chat_continues(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    talk = Talk(reply("one"), reply("two"), reply("three"))
    talk.ask("first")
    path = store.paths()[0]
    before = path.read_bytes()
    write = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(28, "No space left on device")
        return write(handle, data[:-5])

    monkeypatch.setattr(os, "write", full)
    talk.ask("second", "third")
    assert talk.words.count("not saved: No space left on device: free some space, or set") == 1
    assert talk.shown.count("not saved") == 1
    assert path.read_bytes() == before
    assert talk.messages[-1] == ("assistant", "three")

    handles = len(list(Path("/dev/fd").iterdir()))
    late = Talk(reply("one"), reply("two"))
    late.ask("first", "second")
    assert late.shown.count("not saved") == 1
    assert store.paths() == [path]
    assert len(list(Path("/dev/fd").iterdir())) == handles


def test_a_copy_has_no_times_and_continues_with_the_loaded_model(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    path = tmp_path / "copy"
    Transcript(Conversation(Models("another"), "Be kind.", messages)).save(path)
    talk = Talk(reply("one"))
    talk.run(f"/load {path}")
    assert talk.chat.transcript.conversation == Conversation(Models(), "Be kind.", messages)
    talk.ask("first")
    talk.run(f"/save {path}")
    copied = [list(event) for event in journal.read(path, transcript.FORMAT)[1:]]
    assert copied == [["models", "system"], ["message"], ["message"]]


def test_a_file_that_is_not_a_conversation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    king = {"message": {"role": "king", "content": "x"}}
    model = {"models": {"model": "a", "size": 3}}
    events = [king, {"message": 3}, {"keep": "all"}, model]
    contents = [journal.encode(transcript.HEADER, event) for event in events]
    for content in (b"hello\n", b"", b"{}\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", *contents):
        path.write_bytes(content)
        with pytest.raises(MgmError, match="file"):
            transcript.load(path)
        for _ in range(2):  # the first try releases it
            with pytest.raises(MgmError, match=r"name another one|remove it"):
                Transcript.reopened(path)


def test_a_disk_that_is_read_only_is_not_said_to_be_full(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    talk = Talk(reply("one"))
    talk.chat.transcript.path = tmp_path / "file" / "folder" / "session.jsonl"
    talk.ask("first")
    assert "is not saved: Not a directory: set MGM_DATA_DIR to another folder" in talk.words


@pytest.fixture
def saved() -> Path:
    """A conversation with a model in a folder that is gone."""
    path = store.path_of("t1")
    transcript = Transcript(Conversation(Models("/no/such/model"), "Be kind."), path)
    transcript.ask("Hi")
    transcript.close()
    return path


@pytest.mark.parametrize("resume", [["-c"], ["--session", "t1"]])
def test_a_model_that_does_not_load_leaves_the_conversation_as_it_was(
    mgm_here: Here, saved: Path, resume: list[str]
) -> None:
    before = saved.read_bytes()
    for options in (["typo"], ["demo", "--drafter", "/no/drafter"]):
        done = mgm_here("chat", *options, *resume, "--system", "Be rude.")
        assert_one_line(done, 3, options[-1])
    assert saved.read_bytes() == before


def test_a_model_that_loads_is_saved_with_the_conversation(saved: Path) -> None:
    Talk(path=saved, wanted=Models("demo")).chat.transcript.close()
    assert transcript.load(saved).models == Models("demo")


def test_a_folder_that_is_gone_is_named_and_never_looked_for_elsewhere(
    mgm_here: Here, saved: Path
) -> None:
    gone = "the folder /no/such/model of this conversation is gone: name another model with --model"
    assert_one_line(mgm_here("chat", "-c"), 3, gone)
    again = Transcript.reopened(saved)
    again.use(Models("demo", "/no/such/drafter"))
    again.close()
    assert_one_line(mgm_here("chat", "-c"), 3, "another drafter with --drafter")


def test_a_folder_means_the_same_wherever_a_conversation_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    whole = Models(str(tmp_path / "toy"), str(tmp_path / "toy"))
    assert Models("toy", "~/toy").located() == Models("./toy/", "toy").located() == whole
    assert (whole.shown, Models("a/b").shown) == ("toy", "a/b")
    for same in (Models("demo"), Models("a/b", "none"), Models("no-such", "a/c", 4)):
        assert same.located() == same
    talk = Talk()
    talk.loads = [talk.engine]
    talk.run("/model toy")
    assert talk.chat.models == Models(str(tmp_path / "toy"))


def test_a_checkpoint_without_tokenizer_is_refused_before_it_is_loaded(
    mgm_here: Here, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((DEMO / "config.json").read_bytes())
    why = f"tokenizer.json is missing from {tmp_path}: download or copy it"
    assert_one_line(mgm_here("chat", tmp_path), 1, why)
    assert_one_line(mgm_here("generate", "Hi", "--model", tmp_path), 1, why)


def test_each_conversation_has_one_line_of_80_columns(data: Path) -> None:
    messages = [{"role": "user", "content": "Why is the sky blue? " * 9}]
    store.new_path().parent.mkdir(parents=True)
    for model in ("demo", "mlx-community/gemma-4-26b-a4b-it-qat-4bit"):
        Transcript(Conversation(Models(model), None, messages)).save(store.new_path())
    shown = table(HEADER, rows(store.kept(), 80), left=len(HEADER), width=80).splitlines()
    assert len(shown) == 4
    assert all("Why is" in line for line in shown[2:])
    assert max(map(len, shown)) <= 80


def test_clear_starts_another_session_and_sessions_are_listed_and_removed_unless_they_are_open(
    mgm_here: Here, data: Path
) -> None:
    assert mgm_here("sessions").stdout == ""
    talk = Talk(reply("one"), reply("two"))
    talk.run("/system Be kind.")
    talk.ask("My name is Anna.\n And I am 33 years old, as old as the hills.")
    talk.run("/clear")
    assert talk.messages == []
    [first] = store.paths()
    os.utime(first, (1, 1))
    talk.ask("second")
    contents = [(message["role"], message["content"]) for message in talk.engine.asked[1]]
    assert contents == [("system", "Be kind."), ("user", "second")]
    path = store.paths()[0]
    assert path == talk.chat.transcript.path != first
    store.cache_of(path).write_bytes(b"12345")
    (data / "sessions" / "broken.jsonl").write_bytes(b"?\n")
    strangers = [data / "sessions" / name for name in ("my notes.jsonl", "copy.jsonl.jsonl")]
    for stranger in strangers:
        stranger.write_bytes(path.read_bytes())

    assert "My name is Anna. And I am 33 years old, as old as…" in mgm_here("sessions").stdout
    listed = {one["name"]: one for one in found(mgm_here("sessions", "--json"))["sessions"]}
    assert len(listed) == 3
    assert listed["broken"]["problem"]
    assert (listed[path.stem]["cache_bytes"], listed[path.stem]["turns"]) == (5, 1)
    assert store.last() == path  # neither the broken one nor a stranger

    assert_one_line(mgm_here("sessions", "rm", path.stem), 2, "open in another mgm process")
    assert path.exists()
    assert_one_line(mgm_here("sessions", "rm", "--all"), 2, "add --yes")
    done = mgm_here("sessions", "rm", "--all", "--yes")
    assert done.returncode == 2
    assert done.stdout.splitlines() == [f"removed {one}" for one in ("broken", first.stem)]
    assert store.paths() == [path]
    talk.chat.transcript.close()
    assert mgm_here("sessions", "rm", path.stem).stdout == f"removed {path.stem}\n"
    assert not path.exists()
    assert not store.cache_of(path).exists()
    assert_one_line(mgm_here("sessions", "rm", path.stem), 2, path.stem)
    for name in ("../history", "copy.jsonl"):
        assert_one_line(mgm_here("sessions", "rm", name), 2, name)
    assert_one_line(mgm_here("sessions", "rm"), 2, "--all")
    assert store.kept() == []
    assert all(stranger.exists() for stranger in strangers)
    assert_one_line(mgm_here("chat", "-c"), 2, "no conversation")
    for keeping in (["-c"], ["--session", "x"], ["--keep-cache"]):
        assert_one_line(mgm_here("chat", "--no-keep", *keeping), 2, "--no-keep")


def test_a_path_that_does_not_fit_next_to_its_name_gets_a_line_of_its_own() -> None:
    paths = {"models": Path("/a/" + "long" * 6), "demo": Path("/b")}  # 27 columns and 2
    assert (
        laid_out(paths, 38)
        == laid_out(paths, None)
        == [f"models     /a/{'long' * 6}", "demo       /b"]
    )
    assert laid_out(paths, 37) == ["models", f"/a/{'long' * 6}", "demo", "/b"]


def test_paths_are_those_of_the_system_or_of_the_variables(
    monkeypatch: pytest.MonkeyPatch, mgm_here: Here, data: Path
) -> None:
    own = found(mgm_here("paths", "--json"))
    assert (own["sessions"], own["history"]) == (str(data / "sessions"), str(data / "history"))
    monkeypatch.delenv("MGM_DATA_DIR")
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg/data")
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg/state")
    own = found(mgm_here("paths", "--json"))
    if sys.platform == "linux":
        assert own["sessions"] == "/xdg/data/mlx-gemma-mtp/sessions"
        assert own["history"] == "/xdg/state/mlx-gemma-mtp/history"
    else:
        assert "Library/Application Support/mlx-gemma-mtp" in own["sessions"]
