"""The chat's own logic: what is kept, what was meant, what is written where; and ten real turns."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.command import SECONDS, SUM, Done, assert_one_line, environment, found, run_here
from mlx_gemma_mtp import Chunk, Completion, SamplingParams
from mlx_gemma_mtp.chat import clipboard, commands, editor, statistics, store, transcript
from mlx_gemma_mtp.chat.chat import Chat
from mlx_gemma_mtp.chat.commands import Call, parse
from mlx_gemma_mtp.chat.loading import Loaded, open_pair
from mlx_gemma_mtp.chat.obey import obey
from mlx_gemma_mtp.chat.screen import Screen
from mlx_gemma_mtp.chat.statistics import Gauge
from mlx_gemma_mtp.chat.talk import answer_lines
from mlx_gemma_mtp.chat.terminal import Interrupts
from mlx_gemma_mtp.chat.transcript import Models, Said, Transcript, shortened
from mlx_gemma_mtp.engine.results import Generation, Stats
from mlx_gemma_mtp.errors import (
    CheckpointError,
    MgmError,
    ModelNotFoundError,
    NotEnoughMemoryError,
    UsageError,
)
from mlx_gemma_mtp.files import journal
from mlx_gemma_mtp.text.channels import ToolCall

ODD = "x[i] = y[j] [bold]a[/bold] *b* \\n \x1b[1m {c} é 🦊\r\n\tend"


class Terminal(io.StringIO):
    """A stderr that is one."""

    def isatty(self) -> bool:
        return True


class Engine:
    """Answers with what it is given, and remembers what it was asked."""

    has_drafter = True
    config = SimpleNamespace(max_position_embeddings=8192)
    room = 4096

    def __init__(self, *answers: Completion | MgmError) -> None:
        self.answers = list(answers)
        self.asked: list[list[dict[str, Any]]] = []
        self.closed = False

    def session(self, saved: Path | None = None) -> Any:
        if saved is not None:
            raise CheckpointError(f"{saved} is no saved session")
        return object()

    def submit(self, prompt: Any, params: Any, on_chunk: Any, session: Any) -> Generation:
        self.asked.append([dict(message) for message in prompt])
        answer = self.answers.pop(0)
        if isinstance(answer, UsageError):
            raise answer
        generation = Generation()
        if isinstance(answer, MgmError):
            generation.set_exception(answer)
            return generation
        if answer.thought:
            on_chunk(Chunk(answer.thought, [1, 2, 3], kind="thought"))
        on_chunk(Chunk(answer.text, [4], answer.finish_reason, answer.stats))
        generation.set_result(answer)
        return generation

    def plain_tokens_per_second(self) -> float | None:
        return None

    def longest_context(self) -> int:
        return self.room

    def close(self) -> None:
        self.closed = True


def said(text: str, thought: str = "", finish_reason: Any = "stop") -> Completion:
    return Completion(text, [4], finish_reason, Stats(generated_tokens=1), 7, thought=thought)


class Talk:
    """A chat with a made-up engine, and what it wrote."""

    def __init__(self, *answers: Completion | MgmError, terminal: bool = True) -> None:
        self.out = io.BytesIO()
        self.err = Terminal() if terminal else io.StringIO()
        self.engine = Engine(*answers)
        self.chat = Chat(
            Loaded(self.engine, Models(), 4096),  # type: ignore[arg-type]
            Transcript(Said(), store.new_path()),
            SamplingParams(),
            Screen(self.out, self.err),
            Interrupts() if terminal else None,
            keeps=True,
        )

    def obey(self, text: str, load: Any = None) -> None:
        call = parse(text)
        assert call
        obey(self.chat, call, load)

    @property
    def messages(self) -> list[tuple[str, str]]:
        return [(m["role"], m["content"]) for m in self.chat.transcript.said.messages]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MGM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return tmp_path / "data"


# What is written where


def test_an_answer_is_on_stdout_byte_for_byte_and_all_else_on_stderr() -> None:
    talk = Talk(said(ODD, thought="[red]hm[/red]"), terminal=False)
    talk.chat.shows_stats = True
    talk.chat.ask("Hi")
    assert talk.out.getvalue() == f"{ODD}\n".encode()
    thought, count, numbers = talk.err.getvalue().splitlines()
    assert (thought, count) == ("[red]hm[/red]", "(3 tokens of thought)")
    assert numbers.startswith("1 tok · ")


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_nothing_is_dimmed_where_nobody_wants_it(
    monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]
) -> None:
    monkeypatch.setenv(*variable)
    talk = Talk(said("Hello", thought="hm"))
    talk.chat.ask("Hi")
    assert "\x1b" not in talk.err.getvalue()


def test_the_line_of_numbers_holds_what_was_measured_and_no_more() -> None:
    stats = Stats(
        prompt_tokens=3900,
        reused_tokens=3800,
        generated_tokens=182,
        rounds=67,
        drafted_at=[67, 66],
        accepted_at=[60, 44],
        first_token_seconds=0.31,
        decode_seconds=181 / 61.4,
    )
    assert statistics.line(stats, Gauge(32.6, 32_000, 9_200_000_000)) == (
        "182 tok · 61.4 tok/s (1.9x vs 32.6) · first token 0.31 s · "
        "MTP 2.7 tok/round, 78 % accepted · ctx 4.1k/32k (3.8k reused) · 9.2 GB"
    )
    assert " vs " not in statistics.line(stats, Gauge(None, 32_000, 1))
    plain = Stats(prompt_tokens=9, generated_tokens=1, decode_seconds=0.1)
    assert (
        statistics.line(plain, Gauge(32.6, 4096, 48e6))
        == "1 tok · no drafts · ctx 10/4.1k · 48.0 MB"
    )


def test_it_is_told_whether_the_context_or_max_tokens_cut_an_answer_short() -> None:
    talk = Talk(said("one", finish_reason="length"), said("two", finish_reason="length"))
    talk.chat.ask("Hi")
    assert "(cut short: the context is full)" in talk.err.getvalue()
    talk.obey("/set max_tokens 1")
    talk.chat.ask("Hi")
    assert talk.err.getvalue().count("the context is full") == 1
    assert "(cut short at max_tokens, 1)" in talk.err.getvalue()


@pytest.mark.parametrize(("used", "told"), [(3686, False), (3687, True)])  # of 4096
def test_a_context_is_told_to_be_nearly_full_from_nine_tenths_on(used: int, told: bool) -> None:
    talk = Talk(replace(said("one"), stats=Stats(prompt_tokens=used - 1)))
    talk.chat.ask("Hi")
    assert ("3.7k of 4.1k tokens of context are in use" in talk.err.getvalue()) == told


def test_a_call_of_a_tool_is_told_and_kept_out_of_the_answer() -> None:
    talk = Talk(replace(said("one"), tool_calls=(ToolCall("look", {}, "look()"),)))
    talk.chat.ask("Hi")
    assert "a tool was called" in talk.err.getvalue()
    assert talk.chat.transcript.answer == {"role": "assistant", "content": "one"}


def test_a_long_text_is_cut_where_one_line_ends() -> None:
    assert shortened("a\n b", 3) == "a b"
    assert shortened("abcd", 3) == "ab…"


# What was meant


def test_piped_lines_are_utf_8_whatever_the_locale_says(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = io.BytesIO("é 🦊\n \n/help\r\nlast".encode() + b"\n\xff\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines, encoding="latin-1"))
    talk = Talk(*[said("yes")] * 3, terminal=False)
    with pytest.raises(UsageError, match="not UTF-8 text"):
        answer_lines(talk.chat)
    assert [prompt[-1]["content"] for prompt in talk.engine.asked] == ["é 🦊", "/help", "last"]


def test_a_slash_begins_a_command_and_a_path_or_several_lines_a_message() -> None:
    assert parse("/set seed  7 ") == Call("set", "seed  7")
    assert parse("/quit") == Call("exit", "")
    assert parse("/system two\nlines") == Call("system", "two\nlines")
    for message in (
        "/etc/hosts",
        "/etc/hosts is what?",
        " /help",
        "a /help",
        "/help\nme",
        "//",
        "/1",
    ):
        assert parse(message) is None


def test_a_command_that_there_is_not_is_told_with_the_nearest_one() -> None:
    for typed, meant in [
        ("/hlep", "/help"),
        ("/laod", "/load"),
        ("/tmp", "/mtp"),
        ("/exti", "/exit"),
    ]:
        with pytest.raises(UsageError, match=rf"no command {typed}: did you mean {meant}\?"):
            parse(typed)
    with pytest.raises(UsageError, match="/help lists them"):
        parse("/zzz")


def test_commands_are_completed_with_their_values() -> None:
    assert list(commands.completions("/s")) == ["/system", "/set", "/stats", "/save"]
    assert list(commands.completions("/mtp a")) == ["auto"]
    assert "/set NAME VALUE" in commands.help_text().replace("[", "").replace("]", "")


def test_a_block_of_lines_is_what_stands_between_its_quotes() -> None:
    for text in ('"""a\n b"""', '  """\na\n b\n"""\n'):
        assert not editor.is_open(text)
        assert editor.unblocked(text) == "a\n b"
    assert editor.is_open('"""a\nb')
    assert editor.is_open('"""')
    for text in ('a """b', '"a"', ""):
        assert not editor.is_open(text)
        assert editor.unblocked(text) == text


def test_drafts_and_settings_are_taken_as_typed_or_not_at_all() -> None:
    talk = Talk()
    for typed, drafts in [("off", 0), ("3", 3), ("auto", "auto")]:
        talk.obey(f"/mtp {typed}")
        assert talk.chat.params.num_draft_tokens == drafts
    for setting in ("temperature 0.5", "top_k 3", "seed 7", "stop a b", "max_tokens 9"):
        talk.obey(f"/set {setting}")
    params = SamplingParams(temperature=0.5, top_k=3, seed=7, stop="a b", max_tokens=9)
    for typed in (
        "/mtp 99",
        "/mtp -1",
        "/set seed 1.5",
        "/set top_p no",
        "/set speed 3",
        "/think x",
    ):
        with pytest.raises(UsageError):
            talk.obey(typed)
    assert talk.chat.params == params
    talk.obey('/set stop ["\\n", "b"]')
    assert talk.chat.params.stop_strings == ("\n", "b")
    talk.obey("/set stop default")
    assert talk.chat.params.stop_strings == ()


def test_no_drafts_are_asked_for_where_nothing_drafts() -> None:
    talk = Talk()
    talk.engine.has_drafter = False
    with pytest.raises(UsageError, match="--drafter"):
        talk.obey("/mtp 3")
    assert talk.chat.params == SamplingParams()
    talk.obey("/mtp 0")
    assert talk.chat.params.num_draft_tokens == 0


# What is kept


def test_a_conversation_read_again_is_what_it_was(data: Path) -> None:
    talk = Talk(*(said(f"answer {number}", thought="hm") for number in range(9)))
    talk.obey("/system Be kind.")
    talk.chat.ask(ODD)
    talk.chat.ask("second")
    talk.obey("/undo")
    talk.chat.ask("third")
    talk.obey("/regen")
    before = talk.chat.transcript.said
    path = talk.chat.transcript.path
    assert path
    with pytest.raises(UsageError, match="open in another mgm"):
        Transcript.reopened(path)
    talk.chat.transcript.close()
    with path.open("ab") as file:
        file.write(b'{"message": {"role": "us')  # a crash
    again = Transcript.reopened(path)
    assert again.said == before
    assert [content for _, content in talk.messages] == [ODD, "answer 0", "third", "answer 3"]
    again.ask("fourth")
    assert transcript.load(path) == again.said
    assert path.stat().st_mode & 0o77 == 0  # nobody else's business


def test_the_system_prompt_is_there_once_in_every_turn() -> None:
    talk = Talk(*[said("yes")] * 3)
    talk.obey("/system Be kind.")
    for _ in range(3):
        talk.chat.ask("Hi")
    for number, prompt in enumerate(talk.engine.asked):
        roles = [message["role"] for message in prompt]
        assert roles == ["system", *["user", "assistant"] * number, "user"]


def test_a_question_without_answer_is_asked_again_or_gives_way() -> None:
    lost = MgmError("the device is gone")
    talk = Talk(lost, UsageError("too long"), said("two"), said("", finish_reason="cancelled"))
    for question in ("first", "second"):
        with pytest.raises(MgmError):
            talk.chat.ask(question)
    assert talk.messages == [("user", "second")]
    talk.obey("/regen")
    assert talk.messages == [("user", "second"), ("assistant", "two")]
    talk.obey("/regen")  # stopped before a word: what was there stays
    assert talk.messages[-1] == ("assistant", "two")
    talk.obey("/undo")
    for command in ("/undo", "/regen", "/copy"):
        with pytest.raises(UsageError):
            talk.obey(command)


@pytest.mark.parametrize("moment", ["before it is known", "while the prompt is read"])
def test_ctrl_c_stops_a_prefill_and_the_question_can_be_asked_again(
    monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    talk = Talk(said("42"))
    interrupts, spinner = talk.chat.interrupts, talk.chat.screen.spinner
    assert interrupts

    def read_prompt(generation: Generation) -> None:
        deadline = time.monotonic() + 10
        while not generation.stopping and time.monotonic() < deadline:
            time.sleep(0.01)
        reason = "cancelled" if generation.stopping else "stop"
        generation.set_result(said("", finish_reason=reason))

    def submit(*arguments: Any, session: Any) -> Generation:
        generation = Generation()
        threading.Thread(target=read_prompt, args=[generation]).start()
        if moment == "before it is known":
            interrupts.press(signal.SIGINT, None)
        return generation

    def begin_to_spin(what: str) -> Any:
        if moment == "while the prompt is read":
            interrupts.press(signal.SIGINT, None)
        return spinner(what)

    with monkeypatch.context() as patch:
        patch.setattr(talk.engine, "submit", submit)
        patch.setattr(talk.chat.screen, "spinner", begin_to_spin)
        talk.chat.ask(SUM)
    assert "(stopped before the answer: /regen asks again)" in talk.err.getvalue()
    assert talk.messages == [("user", SUM)]
    talk.obey("/regen")
    assert talk.messages[-1] == ("assistant", "42")


def test_what_was_said_until_it_was_stopped_is_the_answer() -> None:
    talk = Talk(said("half an", finish_reason="cancelled"), said("ok"))
    talk.chat.ask("Hi")
    talk.chat.ask("Go on")
    assert talk.engine.asked[1][1] == {"role": "assistant", "content": "half an"}


def test_clear_begins_another_conversation_and_leaves_the_first_where_it_is() -> None:
    talk = Talk(said("one"), said("two"))
    talk.obey("/system Be kind.")
    talk.chat.ask("first")
    talk.obey("/clear")
    assert talk.messages == []
    [first] = store.paths()
    os.utime(first, (1, 1))
    talk.chat.ask("second")
    assert [one.said and one.said.title for one in store.kept()] == ["second", "first"]
    assert store.last() == talk.chat.transcript.path != first
    assert talk.engine.asked[1] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "second"},
    ]


def test_a_disk_that_is_full_is_told_once_and_the_chat_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    talk = Talk(said("one"), said("two"), said("three"))
    talk.chat.ask("first")
    path = talk.chat.transcript.path
    assert path
    before = path.read_bytes()
    write = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(28, "No space left on device")
        return write(handle, data[:-5])

    monkeypatch.setattr(journal.os, "write", full)
    talk.chat.ask("second")
    talk.chat.ask("third")
    assert talk.err.getvalue().count("not kept: No space left on device: make room") == 1
    assert talk.err.getvalue().count("not kept") == 1
    assert path.read_bytes() == before
    assert talk.messages[-1] == ("assistant", "three")

    handles = len(list(Path("/dev/fd").iterdir()))
    late = Talk(said("one"), said("two"))
    late.chat.ask("first")
    late.chat.ask("second")
    assert late.err.getvalue().count("not kept") == 1
    assert store.paths() == [path]
    assert len(list(Path("/dev/fd").iterdir())) == handles


def test_a_copy_says_not_when_something_was_said(tmp_path: Path) -> None:
    talk = Talk(said("one"))
    talk.chat.ask("first")
    talk.obey(f"/save {tmp_path / 'copy'}")
    copied = journal.read(tmp_path / "copy", transcript.FORMAT)[1:]
    assert [list(event) for event in copied] == [["models", "system"], ["message"], ["message"]]


def test_a_loaded_conversation_goes_on_with_the_model_that_is_here(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    Transcript(Said(Models("another"), "Be kind.", messages)).save(tmp_path / "copy")
    talk = Talk()
    talk.obey(f"/load {tmp_path / 'copy'}")
    assert talk.chat.transcript.said == Said(Models(), "Be kind.", messages)


def test_a_cache_that_is_no_good_is_told_in_a_line(tmp_path: Path) -> None:
    talk = Talk(said("one"))
    talk.chat.restore(tmp_path / "cache.safetensors")
    assert talk.err.getvalue().count("\n") == 1
    assert "is read anew" in talk.err.getvalue()


def test_files_that_are_no_conversations_are_refused(tmp_path: Path) -> None:
    files = {
        "text": b"hello\n",
        "nothing": b"",
        "json": b"{}\n",
        "bytes": b"\xff\xfe\n",
        "deep": b"[" * 100_000 + b"\n",
        "odd": journal.encode(transcript.HEADER, {"message": {"role": "king", "content": "x"}}),
        "numbers": journal.encode(transcript.HEADER, {"message": 3}),
        "keep": journal.encode(transcript.HEADER, {"keep": "all"}),
        "models": journal.encode(transcript.HEADER, {"models": {"model": "a", "size": 3}}),
    }
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(MgmError, match=name):
            transcript.load(path)
        for _ in range(2):  # the first try lets go of it
            with pytest.raises(MgmError, match=r"name another one|remove it"):
                Transcript.reopened(path)


# Another model


def test_a_wrong_model_leaves_the_one_that_is_loaded() -> None:
    def load(models: Models) -> Any:
        raise CheckpointError(f"{models.model} is damaged")

    talk = Talk(said("still here"))
    with pytest.raises(ModelNotFoundError):
        talk.obey("/model no-such-model", load)
    with pytest.raises(ModelNotFoundError, match="mgm pull some/model"):
        talk.obey("/model some/model", load)
    with pytest.raises(CheckpointError):
        talk.obey("/model demo", load)
    assert not talk.engine.closed
    talk.chat.ask("Hi")
    assert talk.out.getvalue() == b"still here\n"


def test_where_two_models_do_not_fit_the_old_one_makes_room_and_comes_back(tmp_path: Path) -> None:
    (folder := tmp_path / "model").mkdir()
    loaded: list[str] = []

    def load(models: Models) -> Any:
        if models.model != "demo" and not talk.engine.closed:
            raise NotEnoughMemoryError("no room")
        loaded.append(models.model)
        if models.model != "demo":
            raise CheckpointError("damaged")
        return Engine(said("back again"))

    talk = Talk()
    talk.obey(f"/model {folder}", load)
    assert loaded == [str(folder), "demo"]
    assert talk.engine.closed
    assert "damaged" in talk.err.getvalue()
    talk.chat.ask("Hi")
    assert talk.out.getvalue() == b"back again\n"


def test_where_the_old_model_cannot_come_back_it_is_said_that_none_is_loaded() -> None:
    def load(models: Models) -> Any:
        raise NotEnoughMemoryError("no room")

    talk = Talk()
    with pytest.raises(MgmError, match=r"^no room; no model is loaded now: /model NAME loads one$"):
        talk.obey("/model demo", load)
    assert talk.engine.closed
    talk.obey("/model demo", lambda _: Engine(said("here")))
    talk.chat.ask("Hi")
    assert talk.out.getvalue() == b"here\n"


def test_the_context_is_what_there_is_room_for_else_the_models_own() -> None:
    engine: Any = Engine()
    assert open_pair(Models(), lambda _: engine).context == engine.room
    engine.room = 0
    assert open_pair(Models(), lambda _: engine).context == 8192


# The clipboard


def test_the_answer_goes_to_the_system_or_the_terminal_or_it_is_said_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSH_CONNECTION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MgmError, match="xclip"):
        clipboard.copy("text", io.StringIO())
    screen = Terminal()
    clipboard.copy("é", screen)
    assert screen.getvalue() == "\x1b]52;c;w6k=\x07"
    with pytest.raises(MgmError, match="too long"):
        clipboard.copy("x" * 100_000, screen)

    program = tmp_path / "xclip"
    program.write_text(f"#!/bin/sh\n/bin/cat > {tmp_path}/copied\n")
    program.chmod(0o755)
    monkeypatch.setenv("DISPLAY", ":0")
    assert clipboard.copy(ODD, screen) == "copied by xclip"
    assert (tmp_path / "copied").read_bytes() == ODD.encode()
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(MgmError, match="xclip did not take it"):
        clipboard.copy("text", screen)


# mgm sessions, mgm paths


def test_sessions_are_listed_and_removed_with_their_caches(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], data: Path
) -> None:
    def sessions(*arguments: str) -> Done:
        return run_here(monkeypatch, capfd, ["sessions", *arguments])

    assert sessions().stdout == ""
    talk = Talk(said("one"), said("two"))
    talk.chat.ask("My name is Anna.")
    talk.obey("/clear")
    talk.chat.ask("second")
    path = talk.chat.transcript.path
    assert path
    store.cache_of(path).write_bytes(b"12345")
    (data / "sessions" / "broken.jsonl").write_bytes(b"?\n")
    strangers = [data / "sessions" / name for name in ("my notes.jsonl", "copy.jsonl.jsonl")]
    for stranger in strangers:
        stranger.write_bytes(path.read_bytes())

    assert "My name is Anna." in sessions().stdout
    listed = {one["name"]: one for one in found(sessions("--json"))["sessions"]}
    assert len(listed) == 3
    assert listed["broken"]["problem"]
    assert listed[path.stem]["cache_bytes"] == 5
    assert listed[path.stem]["turns"] == 1
    assert store.last().stem not in ("broken", "my notes", "copy.jsonl")

    assert sessions("rm", path.stem).stdout == f"removed {path.stem}\n"
    assert not path.exists()
    assert not store.cache_of(path).exists()
    assert_one_line(sessions("rm", path.stem), 2, path.stem)
    for name in ("../history", "copy.jsonl"):
        assert_one_line(sessions("rm", name), 2, "is no name")
    assert_one_line(sessions("rm"), 2, "--all")
    sessions("rm", "--all")
    assert store.kept() == []
    assert all(stranger.exists() for stranger in strangers)
    assert_one_line(run_here(monkeypatch, capfd, ["chat", "-c"]), 2, "no conversation")


def test_paths_are_those_of_the_system_or_as_the_variables_say(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], data: Path
) -> None:
    def paths() -> dict[str, Any]:
        return found(run_here(monkeypatch, capfd, ["paths", "--json"]))

    own = paths()
    assert own["sessions"] == str(data / "sessions")
    assert own["history"] == str(data / "history")
    monkeypatch.delenv("MGM_DATA_DIR")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_DATA_HOME", "/xdg/data")
        monkeypatch.setenv("XDG_STATE_HOME", "/xdg/state")
        assert paths()["sessions"] == "/xdg/data/mlx-gemma-mtp/sessions"
        assert paths()["history"] == "/xdg/state/mlx-gemma-mtp/history"
    else:
        assert "Library/Application Support/mlx-gemma-mtp" in paths()["sessions"]


# With a model

TEN_TURNS = """
import io, json, sys
sys.modules["torch"] = None  # see command.py
from mlx_gemma_mtp import SamplingParams, device, load, memory
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.chat.chat import Chat
from mlx_gemma_mtp.chat.loading import Loaded
from mlx_gemma_mtp.chat.screen import Screen
from mlx_gemma_mtp.chat.transcript import Models, Said, Transcript
from mlx_gemma_mtp.engine.worker import mlx_worker

models = Models()
params = SamplingParams(temperature=0, max_tokens=64, num_draft_tokens=2, thinking=True)
screen, prompts, turns = Screen(io.BytesIO(), io.StringIO()), [], []
with load("demo") as engine:
    chat = Chat(Loaded(engine, models, 4096), Transcript(Said()), params, screen)
    for number in range(10):
        chat.ask(f"What is {17 + number} + 25?")
        prompts.append(chat.transcript.prompt[:-1])
        turns.append([chat.last.prompt_tokens, chat.last.reused_tokens, chat.transcript.answer])
    fresh = [engine.generate(prompt, params)[0].message for prompt in prompts[::3]]
    pair = memory.read_pair(*hub.find_pair("demo", "auto"))
    room = mlx_worker().run(lambda: pair.needs(500, batch=1, sessions=1).total)
    device.available = lambda: room
    fits = engine.longest_context()
    needs = mlx_worker().run(lambda: [pair.needs(n, 1, 1).total - room for n in (fits, fits + 1)])
print(json.dumps([turns, fresh, needs]))
"""


@pytest.fixture(scope="module")
def ten_turns() -> Any:
    program = [sys.executable, "-c", TEN_TURNS]
    done = subprocess.run(program, capture_output=True, timeout=SECONDS, env=environment())
    return json.loads(done.stdout)


def test_an_engine_tells_the_longest_text_that_it_has_room_to_keep(ten_turns: Any) -> None:
    longest, longer = ten_turns[2]
    assert longest <= 0 < longer


def test_ten_turns_with_thoughts_prefill_what_is_new_and_say_what_they_say_from_nothing(
    ten_turns: Any,
) -> None:
    turns, fresh, _ = ten_turns
    assert turns[0][2]["reasoning"]
    # Every third turn: reading all of the conversation ten times is slow on a CPU.
    assert [answer for _, _, answer in turns[::3]] == fresh
    before = 0
    for length, reused, _ in turns:
        assert reused >= before  # all but the last answer, and what is new
        before = length
    assert before > 200
