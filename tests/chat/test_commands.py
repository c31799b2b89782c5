"""The commands of a chat: how they are read, completed, refused, and what they change."""

from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from helpers.talk import Talk, reply
from mlx_gemma_mtp import MgmError, SamplingParams
from mlx_gemma_mtp.chat import commands, editor, syntax
from mlx_gemma_mtp.errors import UsageError


def test_a_slash_starts_a_command_but_a_path_or_several_lines_are_a_message() -> None:
    assert syntax.parse("/set seed  7 ") == ("set", "seed  7")
    assert syntax.parse("/quit") == ("exit", "")
    assert syntax.parse("/system two\nlines") == ("system", "two\nlines")
    messages = ("/etc/hosts", "/etc/hosts is what?", " /help", "a /help", "/help\nme", "//", "/1")
    assert [syntax.parse(message) for message in messages] == [None] * len(messages)


def test_commands_are_completed_with_their_values() -> None:
    for typed, found in {
        "/s": ["system", "set", "stats", "save"],
        "/set t": ["temperature", "top_k", "top_p"],
        "/set seed s": [],
        "/exit e": [],
        "s": [],
    }.items():
        shown = editor.Commands().get_completions(Document(typed), CompleteEvent())
        assert [one.text for one in shown] == found


@pytest.mark.parametrize("width", [120, 80, 40])
def test_help_names_every_command_and_setting_and_fits_the_width(width: int) -> None:
    shown = syntax.help_text(width)
    assert width < 80 or len(shown.splitlines()) <= 22  # of 24, with a blank line and the prompt
    assert max(map(len, shown.splitlines())) <= width
    for word in (*(f"/{command.name}" for command in syntax.COMMANDS), *syntax.SETTINGS):
        assert word in shown


def test_piped_lines_are_messages_or_commands_in_utf_8() -> None:
    talk = Talk(*[reply("yes")] * 3, terminal=False)
    lines = [
        "\ufeffé 🦊\n",
        " \n",
        "/set seed 7\r\n",
        " /help me",
        "/etc/hosts",
        "/exit",
        "no more",
    ]
    commands.answer_lines(talk.chat, map(str.encode, lines))
    assert [prompt[-1]["content"] for prompt in talk.engine.asked] == [
        "é 🦊",
        " /help me",
        "/etc/hosts",
    ]
    assert talk.chat.params.seed == 7
    refused = {b"\xff\n": "not UTF-8 text", b"a\0b": "not text", b"/hlep": "no command /hlep"}
    for line, why in refused.items():
        with pytest.raises(UsageError, match=why):
            commands.answer_lines(talk.chat, [line])


def test_a_block_of_lines_is_the_text_between_its_quotes() -> None:
    for text in ('"""a\n b"""', '  """\na\n b\n"""\n'):
        assert not editor.is_open(text)
        assert editor.unblocked(text) == "a\n b"
    assert all(map(editor.is_open, ('"""a\nb', '"""')))
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


def test_a_chat_shows_whether_it_drafts() -> None:
    talk = Talk()
    assert talk.chat.drafts == "drafts from a drafter"
    talk.run("/mtp off", "/model")
    assert talk.chat.drafts == "drafts off"
    assert "(drafts: off) (model: demo; drafts off)" in talk.words
    talk.engine.has_drafter = False
    talk.run("/mtp", "/mtp auto", "/model")
    assert talk.words.endswith("(no drafter) (no drafter) (model: demo; no drafter)")


def test_a_command_that_fails_says_so_in_a_line_and_changes_nothing(tmp_path: Path) -> None:
    talk = Talk(reply("one"))
    talk.engine.has_drafter = False
    talk.run("/mtp 0")
    params = talk.chat.params
    (other := tmp_path / "other.txt").write_text("precious")
    (tmp_path / "odd").write_bytes(b"\xff")
    (tmp_path / "zeros").write_bytes(bytes(100))
    for typed, why in [
        ("/mtp 99", "off, auto, or 1 to 15"),
        ("/mtp 3", "mgm chat --drafter"),
        ("/set seed -1", "seed must"),
        ("/set top_p no", "top_p must be above 0 and at most 1"),
        ("/set temperature hot", "temperature must be 0 (greedy) or above"),
        ("/set stop [1", 'stop takes a text, "a text" or ["a", "list"]'),
        ("/set speed 3", "no setting 'speed'"),
        ("/set temp 1", "did you mean temperature?"),
        ("/think x", "on, off, open or fold"),
        ("/stats x", "on or off"),
        ("/stats", "no answer yet"),
        ("/laod", "no command /laod: did you mean /load?"),
        ("/tmp", "did you mean /mtp?"),
        ("/exti", "did you mean /exit?"),
        ("/zzz", "/help lists them"),
        ("/read /no/such/file", "No such file"),
        (f"/read {tmp_path}/odd", "not UTF-8"),
        (f"/read {tmp_path}/zeros", "zeros is not text"),
        (f"/read {tmp_path}/no {'long ' * 100}", "No such file"),
        ("/load /no/such/file", "No such file"),
        ("/load ~nobody-of-this-name/file", "home directory"),
        ("/save", "needs a file name"),
        (f"/save {other}", "name another one"),
        (f"/save {tmp_path}/no/such/folder", "No such file"),
    ]:
        before = len(talk.shown)
        talk.type(typed)
        line = " ".join(talk.shown[before:].split())
        assert line.startswith("mgm: ")
        assert line.count("mgm: ") == 1
        assert why in line
    assert talk.chat.params == params
    assert other.read_text() == "precious"
    assert talk.messages == []
    talk.type("Hi", "/exit", "no more")
    assert talk.messages == [("user", "Hi"), ("assistant", "one")]


def test_a_file_is_sent_after_the_text_that_follows_its_name(tmp_path: Path) -> None:
    (path := tmp_path / "some notes").write_bytes(b"\xef\xbb\xbfcontent")
    (tmp_path / "notes").write_text("other")
    (tmp_path / "it's").write_text("odd")
    escaped = str(path).replace(" ", "\\ ")
    names = (f"{path}", f'"{path}" Sum up.', f"'{path}' Sum up.", f"{escaped} Sum up.", escaped)
    more = (f"{tmp_path}/notes Sum up.", f"{tmp_path}/it's Sum up.", f"{tmp_path}/it\\'s")
    talk = Talk(*[reply("yes")] * 16)
    talk.run(*(f"/read {name}" for name in (*names, *more)))
    talk.type(*(f"{name} " for name in (*names, *more)))  # dragged to the prompt
    once = "Sum up.\n\ncontent"
    sent = ["content", once, once, once, "content", "Sum up.\n\nother", "Sum up.\n\nodd", "odd"]
    assert [prompt[-1]["content"] for prompt in talk.engine.asked] == sent * 2
    assert talk.words.count(", 1 line)") == 16


def test_a_path_is_a_message_if_it_names_no_file_or_is_not_at_the_start(tmp_path: Path) -> None:
    (path := tmp_path / "notes").write_text("other")
    messages = [
        f" {path}",
        f"What is {path}?",
        f"{path}\nis what?",
        f"{tmp_path}",
        f"{tmp_path}/no",
    ]
    talk = Talk(*[reply("yes")] * len(messages))
    talk.type(*messages)
    assert [prompt[-1]["content"] for prompt in talk.engine.asked] == messages
    (tmp_path / "binary").write_bytes(b"\xff")
    talk.type(f"{tmp_path}/binary")
    assert "not UTF-8 text" in talk.words


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


def test_the_system_prompt_is_in_every_turn_once_and_saved(tmp_path: Path) -> None:
    talk = Talk(*[reply("yes")] * 3)
    talk.run("/system Be kind.")
    talk.ask("Hi", "Hi")
    talk.run(f"/save {tmp_path}/kept", "/undo", "/clear", "/system none", f"/load {tmp_path}/kept")
    assert "(removed: Hi)" in talk.shown
    assert "(loaded 2 turns) > Hi" in talk.words
    talk.ask("Hi")
    for number, prompt in enumerate(talk.engine.asked):
        roles = [message["role"] for message in prompt]
        assert roles == ["system", *["user", "assistant"] * number, "user"]
