"""The commands of a chat: how they are read, completed, refused, and what they change."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from helpers.talk import Talk, reply
from mlx_gemma_mtp import MgmError, SamplingParams
from mlx_gemma_mtp.chat import commands, editor
from mlx_gemma_mtp.chat.actions import talk as hold
from mlx_gemma_mtp.chat.commands import parse
from mlx_gemma_mtp.errors import UsageError


def test_a_slash_starts_a_command_but_a_path_or_several_lines_are_a_message() -> None:
    assert parse("/set seed  7 ") == ("set", "seed  7")
    assert parse("/quit") == ("exit", "")
    assert parse("/system two\nlines") == ("system", "two\nlines")
    messages = ("/etc/hosts", "/etc/hosts is what?", " /help", "a /help", "/help\nme", "//", "/1")
    assert [parse(message) for message in messages] == [None] * len(messages)


def test_an_unknown_command_is_refused_with_the_nearest_one() -> None:
    for typed, near in [("hlep", "help"), ("laod", "load"), ("tmp", "mtp"), ("exti", "exit")]:
        with pytest.raises(UsageError, match=rf"no command /{typed}: did you mean /{near}\?"):
            parse(f"/{typed}")
    with pytest.raises(UsageError, match="/help lists them"):
        parse("/zzz")


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("/s", ["system", "set", "stats", "save"]),
        ("/mtp a", ["auto"]),
        ("/set t", ["temperature", "top_k", "top_p"]),
        ("/set seed s", []),
        ("/exit e", []),
        ("s", []),
    ],
)
def test_commands_are_completed_with_their_values(typed: str, found: list[str]) -> None:
    shown = editor.Commands().get_completions(Document(typed), CompleteEvent())
    assert [one.text for one in shown] == found


def test_help_names_every_command_and_setting_and_fits_80_columns() -> None:
    lines = commands.help_text().splitlines()
    assert max(map(len, lines)) <= 80
    for command, line in zip(commands.COMMANDS, lines, strict=False):
        assert line.startswith(f"/{command.name}")
    for setting in commands.SETTINGS:
        assert setting in commands.help_text()


def test_a_block_of_lines_is_the_text_between_its_quotes() -> None:
    for text in ('"""a\n b"""', '  """\na\n b\n"""\n'):
        assert not editor.is_open(text)
        assert editor.unblocked(text) == "a\n b"
    assert editor.is_open('"""a\nb')
    assert editor.is_open('"""')
    for text in ('a """b', '"a"', ""):
        assert not editor.is_open(text)
        assert editor.unblocked(text) == text


def test_drafts_and_settings_are_taken_as_typed() -> None:
    talk = Talk()
    for typed, drafts in [("off", 0), ("3", 3), ("auto", "auto")]:
        talk.run(f"/mtp {typed}")
        assert talk.chat.params.num_draft_tokens == drafts
    for setting in ("temperature 0.5", "top_k 3", "seed 7", "stop a b", "max_tokens 9"):
        talk.run(f"/set {setting}")
    params = SamplingParams(temperature=0.5, top_k=3, seed=7, stop="a b", max_tokens=9)
    assert talk.chat.params == params
    talk.run('/set stop ["\\n", "b"]')
    assert talk.chat.params.stop_strings == ("\n", "b")
    talk.run("/set stop default")
    assert talk.chat.params.stop_strings == ()


def test_a_command_that_fails_says_so_in_a_line_and_changes_nothing(tmp_path: Path) -> None:
    talk = Talk(reply("one"))
    talk.engine.has_drafter = False
    talk.run("/mtp 0")
    params = talk.chat.params
    (other := tmp_path / "other.txt").write_text("precious")
    (tmp_path / "odd").write_bytes(b"\xff")
    for typed, why in [
        ("/mtp 99", "off, auto, or 1 to 15"),
        ("/mtp -1", "off, auto, or 1 to 15"),
        ("/mtp 3", "mgm chat --drafter"),
        ("/set seed 1.5", "seed must"),
        ("/set seed -1", "seed must"),
        ("/set top_p no", "top_p cannot be"),
        ("/set speed 3", "no setting 'speed'"),
        ("/set temp 1", "did you mean temperature?"),
        ("/think x", "on, off, open or fold"),
        ("/stats x", "on or off"),
        ("/stats", "no answer yet"),
        ("/hlep", "did you mean /help?"),
        ("/model no-such-model", "no-such-model"),
        ("/read /no/such/file", "No such file"),
        (f"/read {tmp_path}/odd", "not UTF-8"),
        (f"/read {tmp_path}/no {'long ' * 100}", "No such file"),
        ("/load /no/such/file", "No such file"),
        ("/load ~nobody-of-this-name/file", "home directory"),
        ("/save", "needs a file name"),
        (f"/save {other}", "name another one"),
        (f"/save {tmp_path}/no/such/folder", "No such file"),
    ]:
        before = len(talk.shown)
        typist: Any = SimpleNamespace(read=iter([typed, None]).__next__)
        hold(talk.chat, typist)
        [line] = talk.shown[before:].splitlines()
        assert line.startswith("mgm: ")
        assert why in line
    assert talk.chat.params == params
    assert other.read_text() == "precious"
    assert talk.messages == []
    typist = SimpleNamespace(read=iter(["Hi", "/exit", "no more"]).__next__)
    hold(talk.chat, typist)
    assert talk.messages == [("user", "Hi"), ("assistant", "one")]


def test_a_file_is_sent_after_the_text_that_follows_its_name(tmp_path: Path) -> None:
    (path := tmp_path / "some notes").write_text("content")
    (tmp_path / "notes").write_text("other")
    talk = Talk(*[reply("yes")] * 3)
    talk.run(f"/read {path}", f'/read "{path}" Sum up.', f"/read {tmp_path}/notes Sum up.")
    sent = [prompt[-1]["content"] for prompt in talk.engine.asked]
    assert sent == ["content", "Sum up.\n\ncontent", "Sum up.\n\nother"]


def test_a_message_without_answer_is_answered_again_or_replaced() -> None:
    lost = MgmError("the device is gone")
    talk = Talk(lost, UsageError("too long"), reply("two"), reply("", finish_reason="cancelled"))
    for question in ("first", "second"):
        with pytest.raises(MgmError):
            talk.ask(question)
    assert talk.messages == [("user", "second")]
    talk.run("/regen")
    assert talk.messages == [("user", "second"), ("assistant", "two")]
    talk.run("/regen")  # stopped before a word: the earlier answer stays
    assert talk.messages[-1] == ("assistant", "two")
    talk.run("/undo")
    for command in ("/undo", "/regen", "/copy"):
        with pytest.raises(UsageError):
            talk.run(command)


def test_the_system_prompt_is_in_every_turn_once() -> None:
    talk = Talk(*[reply("yes")] * 3)
    talk.run("/system Be kind.")
    talk.ask("Hi", "Hi", "Hi")
    for number, prompt in enumerate(talk.engine.asked):
        roles = [message["role"] for message in prompt]
        assert roles == ["system", *["user", "assistant"] * number, "user"]
