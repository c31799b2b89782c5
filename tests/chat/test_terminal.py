"""`mgm chat` at a terminal, with the demo pair: typing, stopping, leaving and coming back.

One chat serves most tests, each from /clear on. Messages are read from its conversation's file.
"""

import base64
import os
import pty
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.command import LONG, STORY, SUM, SUM_ANSWER
from helpers.person import COLUMNS, Person
from mlx_gemma_mtp.chat.terminal import unechoed

pytestmark = pytest.mark.slow

CTRL_C, CTRL_D, CTRL_Z, ESCAPE, TAB = "\x03", "\x04", "\x1a", "\x1b", "\t"
LEFT, UP = "\x1b[D", "\x1b[A"
PASTE = "\x1b[200~{}\x1b[201~"


def context(person: Person) -> tuple[int, int, int]:
    """Return the tokens of the last answer, of the whole context, and of its reused part."""
    found = re.search(r"(\d+) tok .* ctx (\d+)/[\d.]+k(?: \((\d+) reused\))?", person.say("/stats"))
    assert found, person.seen
    answer, used, reused = (int(number or 0) for number in found.groups())
    return answer, used, reused


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    person = Person(tmp_path_factory.mktemp("mgm"), "--temperature", "0")
    yield person
    person.child.close(force=True)


@pytest.fixture
def person(chat: Person) -> Person:
    chat.say("/clear")
    return chat


def test_ctrl_c_stops_an_answer_and_keeps_it_and_regen_answers_again(person: Person) -> None:
    row = person.start(LONG, "1, 2, 3")
    assert 2004 << 5 in person.paper.mode  # a paste is recognized from now on
    person.type(PASTE.format("typed\rahead"))  # it waits, unseen, for the next prompt
    person.wait_to_see("14, 15", row)
    person.child.kill(signal.SIGINT)  # the key would drop the text that was typed ahead
    person.wait_for_line("  ahead")
    shown = "".join(person.paper.written[row + 1 : person.paper.row - 1])
    answer = person.said("assistant")
    assert answer.startswith("1, 2, 3")
    assert not answer.endswith("99.")
    assert shown == f"{answer.rstrip()}(stopped)"
    person.type(CTRL_C)  # clears the line
    person.wait_for_prompt()
    assert person.say("/hlep") == "mgm: no command /hlep: did you mean /help?"

    row = person.start("/regen", "14, 15")
    person.type(CTRL_C)
    assert "(stopped)" in person.wait_for_prompt(row)
    assert len(person.messages) == 3  # the last one in place of the first answer
    stopped, before, _ = context(person)
    assert "= 42" in person.say(SUM)
    new, after, _ = context(person)
    assert after - new > before > stopped > 40  # it is in the prompt


def test_pasted_lines_are_one_message_as_they_are(person: Person) -> None:
    person.say("/set max_tokens 2")
    lines = ["x[i] = y[j]", r"a literal \n", "*b*", *map(str, range(197))]
    person.say(PASTE.format("\r".join(lines)))
    assert person.said("user") == "\n".join(lines)
    assert "the context" in person.say("/set max_tokens default")


def test_several_lines_by_quotes_keys_and_an_editor_and_a_copy(person: Person) -> None:
    person.type('"""What is\r')
    person.say('17 + 25?"""')
    assert person.said("user") == "What is\n17 + 25?"
    person.say(f"What is{ESCAPE}\r2 + 4?{LEFT}\x7f3")
    assert person.said("user") == "What is\n2 + 3?"
    row = person.paper.row
    person.type("\x18\x05")  # the editor's text is sent when it closes, as in a shell
    assert "3 + 4 = 7" in person.wait_for_prompt(row)
    assert "OSC 52" in person.say("/copy")
    assert base64.b64decode(person.clipboard[-1]).decode() == "3 + 4 = 7"


def test_tab_completes_commands_values_and_files(person: Person) -> None:
    (person.folder / "some notes.txt").write_text(SUM)
    person.type(f"/thi{TAB}")
    person.wait_for_line("> /think")
    assert "off" in person.say("")
    person.type(f"/read {person.folder}/some{TAB}")
    person.wait_until(lambda: person.paper.at.endswith("some notes.txt"))
    assert "= 42" in person.say("")


def test_the_chat_follows_the_size_of_the_window(person: Person) -> None:
    person.resize(40)
    person.say("/clear")
    assert "= 42" in person.say("What is 17 + 25? " + "x" * 60 + "\x15" + SUM)
    person.resize(COLUMNS)


def test_thoughts_are_dim_and_counted_or_hidden(person: Person) -> None:
    person.say("/think on")
    row = person.paper.row
    shown = person.say(SUM).splitlines()
    assert re.fullmatch(r"\(\d+ tokens of thought\)", shown[-2])
    assert shown[-1] == SUM_ANSWER
    lines = person.paper.cells[row + 1 : row + 1 + len(shown)]
    dim = [all(cell.blink for cell in line) for line in lines]
    assert dim == [True] * (len(shown) - 1) + [False]
    thought = "\n".join(shown[:-2])
    assert person.said("assistant") == SUM_ANSWER

    person.say("/clear")
    person.say("/think fold")
    assert person.say(SUM).splitlines() == shown[-2:]
    assert thought in person.say("/think")
    assert person.say("/think off") == "(thinking is off; thoughts are hidden)"
    assert person.say("/think open") == "(thinking is off; thoughts are shown)"


def test_other_numbers_of_drafts_give_the_same_text_for_a_seed(person: Person) -> None:
    for setting in ("temperature 2", "top_k 0", "top_p 1", "max_tokens 40", "seed 7"):
        person.say(f"/set {setting}")
    texts = [person.say(STORY)]
    for drafts in ("off", "3", "auto"):
        person.say(f"/mtp {drafts}")
        texts.append(person.say("/regen"))
        assert drafts != "3" or re.search(r"\d.* tokens accepted", person.say("/stats"))
    assert len(texts[0]) > 40
    assert texts == [texts[0]] * 4
    person.say("/set seed 8")
    assert person.say("/regen") != texts[0]
    for setting in ("temperature 0", "max_tokens default", "seed default"):
        person.say(f"/set {setting}")


def test_ctrl_c_twice_quits_with_the_terminal_in_order(chat: Person) -> None:
    chat.type("half a line")
    chat.wait_for_line("> half a line")
    chat.type(CTRL_C)
    chat.wait_for_prompt()
    row = chat.paper.row
    chat.type(CTRL_C)
    assert "Ctrl-D" in chat.wait_for_prompt(row)
    chat.type(CTRL_C)
    assert chat.leave() == 0


def test_a_conversation_continues_after_kill_9_and_sigterm_with_its_cache(tmp_path: Path) -> None:
    first = Person(tmp_path, "--temperature", "0", "--stats")
    first.say("My name is Anna.")
    first.start(LONG, "1, 2, 3")
    first.child.kill(signal.SIGKILL)
    first.child.wait()
    first.child.close()

    second = Person(tmp_path, "--temperature", "0", "-c", "--keep-cache")
    assert "2 turns" in second.seen
    assert f"> {LONG}" in second.seen
    assert "/regen" in second.seen
    assert "Anna" in second.say("What is my name?")  # in place of the message without answer
    second.type(UP + UP)  # earlier messages outlive the process
    second.wait_for_line(f"> {LONG}")
    second.type(f"{CTRL_C}{CTRL_D}")
    assert second.leave() == 0
    assert "to continue: mgm chat -c · later: mgm chat --session 2" in second.seen

    third = Person(tmp_path, "--temperature", "0", "-c", "--stats")
    assert "> What is my name?\nYour name is Anna" in third.seen
    third.say("Thank you.")
    _, used, reused = context(third)
    assert reused > used / 2
    third.child.kill(signal.SIGTERM)
    assert third.leave() == 128 + signal.SIGTERM


def test_ctrl_z_suspends_an_answer_and_fg_continues_it(tmp_path: Path) -> None:
    person = Person(tmp_path, "--temperature", "0", in_shell=True)
    row = person.start(LONG, "14, 15")
    person.type(CTRL_Z)
    person.wait_for_line("$")
    assert 2004 << 5 not in person.paper.mode
    person.type("echo as usual\r")
    person.wait_to_see("$ echo as usual\nas usual\n$", row)
    person.type("fg\r")
    person.wait_to_see("fg\n", row)
    row = person.paper.row - 1  # the answer may have written nothing on the line after "fg" yet
    person.type(CTRL_C)
    assert "(stopped)" in person.wait_for_prompt(row)
    person.type(f"half{CTRL_Z}")
    person.wait_for_line("$")
    person.type("fg\r")
    person.wait_for_line("> half")
    person.child.close(force=True)


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_dumb_terminal_gets_text_alone_and_no_keep_leaves_no_trace(
    tmp_path: Path, term: str
) -> None:
    person = Person(tmp_path, "--temperature", "0", "--no-keep", columns=80, TERM=term)
    assert "demo · drafts from gemma-4-demo-it-assistant" in person.seen
    assert "The demo is a toy" in person.seen
    assert SUM_ANSWER in person.say(SUM)
    person.type(CTRL_D)
    assert person.leave() == 0
    assert "\x1b" not in person.child.logfile_read.getvalue()
    assert "to continue" not in person.seen
    assert not (tmp_path / "history").exists()
    assert not (tmp_path / "sessions").exists()


def test_keys_that_are_typed_while_a_model_loads_are_not_shown_and_wait() -> None:
    person, keyboard = pty.openpty()
    with os.fdopen(keyboard) as stdin:
        with unechoed(stdin):
            os.write(person, b"early\n")
            assert stdin.readline() == "early\n"
        os.write(person, b"late\n")
        assert stdin.readline() == "late\n"
        assert os.read(person, 100) == b"late\r\n"
    os.close(person)
