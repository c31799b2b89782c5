"""`mgm chat` at a terminal, with the demo pair: typing, stopping, leaving and coming back.

One chat serves most tests, each from /clear on. Messages are read from its conversation's file.
"""

import base64
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.command import LONG, STORY, SUM, SUM_ANSWER
from helpers.person import COLUMNS, Person

pytestmark = pytest.mark.slow

CTRL_C, CTRL_D, ESCAPE, TAB = "\x03", "\x04", "\x1b", "\t"
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


def test_arrow_keys_edit_and_up_recalls(person: Person) -> None:
    assert "2 + 3 = 5" in person.say(f"What is 2 + 4?{LEFT}\x7f3")
    assert person.said("user") == "What is 2 + 3?"
    person.type(UP)
    person.wait_for_line("> What is 2 + 3?")
    person.say("")
    assert len(person.messages) == 4


def test_ctrl_c_stops_an_answer_and_keeps_what_is_there(person: Person) -> None:
    row = person.paper.row
    person.type(f"{LONG}\r")
    person.wait_to_see("1, 2, 3", row)
    assert person.paper.has_mode(2004)  # a paste is recognized from now on
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

    stopped, before, _ = context(person)
    assert "= 42" in person.say(SUM)
    new, after, _ = context(person)
    assert after - new > before > stopped > 40  # it is in the prompt


def test_the_key_stops_an_answer_too_and_regen_answers_again(person: Person) -> None:
    for text in (LONG, "/regen"):
        row = person.paper.row
        person.type(f"{text}\r")
        person.wait_to_see("14, 15", row)
        person.type(CTRL_C)
        assert "(stopped)" in person.wait_for_prompt(row)
    assert len(person.messages) == 3


def test_pasted_lines_are_one_message_as_they_are(person: Person) -> None:
    person.say("/set max_tokens 2")
    lines = ["x[i] = y[j]", r"a literal \n", "*b*", *map(str, range(197))]
    person.say(PASTE.format("\r".join(lines)))
    assert person.said("user") == "\n".join(lines)
    assert "the context" in person.say("/set max_tokens default")


def test_a_message_of_several_lines_by_quotes_keys_and_an_editor(person: Person) -> None:
    person.type('"""What is\r')
    person.say('17 + 25?"""')
    assert person.said("user") == "What is\n17 + 25?"
    person.say(f"What is{ESCAPE}\r2 + 3?")
    assert person.said("user") == "What is\n2 + 3?"
    row = person.paper.row
    person.type("\x18\x05")  # the editor's text is sent when it closes, as in a shell
    assert "3 + 4 = 7" in person.wait_for_prompt(row)


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
    person.say("/clear")


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
    person.say("/think open")
    person.say("/think off")


def test_other_numbers_of_drafts_give_the_same_text_for_a_seed(person: Person) -> None:
    for setting in ("temperature 2", "top_k 0", "top_p 1", "max_tokens 40", "seed 7"):
        person.say(f"/set {setting}")
    texts = [person.say(STORY)]
    for drafts in ("off", "3", "auto"):
        person.say(f"/mtp {drafts}")
        texts.append(person.say("/regen"))
    assert len(texts[0]) > 40
    assert texts == [texts[0]] * 4
    person.say("/set seed 8")
    assert person.say("/regen") != texts[0]
    for setting in ("temperature 0", "max_tokens default", "seed default"):
        person.say(f"/set {setting}")


def test_undo_and_regen_reuse_the_kv_cache(person: Person) -> None:
    person.say("My name is Anna.")
    assert person.say("/hlep") == "mgm: no command /hlep: did you mean /help?"
    person.say("/mtp 3")
    person.say("My name is Paul.")
    assert "(removed: My name is Paul.)" in person.say("/undo")
    assert "Anna" in person.say("What is my name?")
    assert re.search(r"MTP \d\.\d tok/round, \d+% accepted", person.say("/stats"))
    answer, used, reused = context(person)
    assert used - answer > reused > 0
    person.say("/mtp auto")


def test_a_conversation_goes_to_a_file_and_back_and_an_answer_to_the_clipboard(
    person: Person,
) -> None:
    person.say("My name is Anna.")
    assert "OSC 52" in person.say("/copy")
    copied = base64.b64decode(person.clipboard[-1])
    assert copied.decode() == person.said("assistant")
    file = person.folder / "kept.txt"
    person.say(f"/save {file}")
    person.say("/clear")
    assert "1 turn," in person.say(f"/load {file}")
    assert "Anna" in person.say("What is my name?")


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


def test_a_conversation_continues_after_kill_9_with_its_cache_and_after_sigterm(
    tmp_path: Path,
) -> None:
    first = Person(tmp_path, "--temperature", "0", "--stats")
    first.say("My name is Anna.")
    row = first.paper.row
    first.type(f"{LONG}\r")
    first.wait_to_see("1, 2, 3", row)
    first.child.kill(signal.SIGKILL)
    first.child.wait()
    first.child.close()

    second = Person(tmp_path, "--temperature", "0", "-c", "--keep-cache")
    assert "2 turns" in second.seen
    assert "/regen" in second.seen
    assert "Anna" in second.say("What is my name?")  # in place of the message without answer
    second.type(UP + UP)  # earlier messages outlive the process
    second.wait_for_line(f"> {LONG}")
    second.type(f"{CTRL_C}{CTRL_D}")
    assert second.leave() == 0

    third = Person(tmp_path, "--temperature", "0", "-c", "--stats")
    third.say("Thank you.")
    _, used, reused = context(third)
    assert reused > used / 2
    third.child.kill(signal.SIGTERM)
    assert third.leave() == 128 + signal.SIGTERM
