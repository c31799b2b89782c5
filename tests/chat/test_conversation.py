"""A chat answers, remarks, stops, switches models, and writes each thing to its stream."""

import io
import signal
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from helpers.command import SUM
from helpers.talk import FakeEngine, Talk, Terminal, reply
from mlx_gemma_mtp import MgmError, SamplingParams, errors, load
from mlx_gemma_mtp.chat import clipboard, commands, screen, statistics
from mlx_gemma_mtp.chat.chat import Chat
from mlx_gemma_mtp.chat.screen import Screen
from mlx_gemma_mtp.chat.transcript import Conversation, Transcript
from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.results import Stats
from mlx_gemma_mtp.text.calls import ToolCall

ODD = "x[i] = y[j] [bold]a[/bold] *b* \\n \x1b[1m {c} é 🦊\r\n\tend"


def test_an_answer_is_on_stdout_byte_for_byte_and_the_rest_on_stderr() -> None:
    talk = Talk(reply(ODD, thought="[red]hm[/red]"), terminal=False)
    talk.chat.shows_stats = True
    talk.ask("Hi")
    assert talk.out.getvalue() == f"{ODD}\n".encode()
    thought, count, stats = talk.shown.splitlines()
    assert (thought, count) == ("[red]hm[/red]", "(3 tokens of thought)")
    assert stats.startswith("1 tok · ")


@pytest.mark.parametrize(
    ("variable", "never"), [(("NO_COLOR", "1"), "\x1b[2m"), (("TERM", "dumb"), "\x1b")]
)
def test_without_colors_nothing_is_dim(
    monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str], never: str
) -> None:
    monkeypatch.setenv(*variable)
    talk = Talk(reply("Hello", thought="hm"))
    talk.ask("Hi")
    assert never not in talk.shown


def test_the_statistics_hold_what_was_measured_and_no_more() -> None:
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
    found = statistics.parts(stats, plain=32.6, context=32_000, memory=9_200_000_000)
    assert " · ".join(found) == (
        "182 tok · 61.4 tok/s (1.9x plain speed, 32.6) · first token 0.31 s · "
        "2.7 tok/round, 78% of draft tokens accepted · ctx 4.1k/32k (3.8k reused) · 9.2 GB"
    )
    assert "plain" not in statistics.parts(stats, plain=None, context=32_000, memory=1)[1]
    few = Stats(prompt_tokens=9, generated_tokens=1, decode_seconds=0.1)
    expected = ["1 tok", "no drafts", "ctx 10/4.1k", "48.0 MB"]
    assert statistics.parts(few, plain=32.6, context=4096, memory=48_000_000) == expected


def test_a_note_says_whether_the_context_or_max_tokens_cut_an_answer_off() -> None:
    talk = Talk(reply("one", finish_reason="length"), reply("two", finish_reason="length"))
    talk.ask("Hi")
    assert "(cut off: the context is full)" in talk.shown
    talk.run("/set max_tokens 1")
    talk.ask("Hi")
    assert talk.shown.count("the context is full)") == 1
    assert "(cut off at max_tokens, 1)" in talk.shown


@pytest.mark.parametrize(("used", "noted"), [(3686, False), (3687, True)])  # of 4096
def test_a_note_says_that_nine_tenths_of_the_context_are_used(used: int, noted: bool) -> None:
    talk = Talk(replace(reply("one"), stats=Stats(prompt_tokens=used - 1)))
    talk.ask("Hi")
    assert ("3.7k of 4.1k tokens of context used" in talk.shown) == noted


def test_a_tool_call_is_noted_and_kept_out_of_the_answer() -> None:
    talk = Talk(replace(reply("one"), tool_calls=(ToolCall("look", {}, "look()"),)))
    talk.ask("Hi")
    assert "asked for a tool" in talk.shown
    assert talk.chat.transcript.answer == {"role": "assistant", "content": "one"}


@pytest.mark.parametrize("delay", [0, 0.1])  # seconds: before a generation is known, or later
def test_ctrl_c_stops_a_prefill_and_regen_answers_the_message(delay: float) -> None:
    class Prefill(Generation):
        def cancel(self) -> bool:
            if not self.done():
                self._finish(reply("", finish_reason="cancelled"))
            return True

    def prefill() -> Generation:
        press = partial(talk.interrupts.press, signal.SIGINT, None)
        generation = Prefill()
        late = threading.Timer(10, generation._finish, [reply("late")])
        generation.add_done_callback(lambda _: late.cancel())
        late.start()
        threading.Timer(delay, press).start() if delay else press()
        return generation

    talk = Talk(prefill, reply("42"))
    talk.ask(SUM)
    assert "(stopped before the answer: /regen asks again)" in talk.shown
    assert talk.messages == [("user", SUM)]
    talk.interrupts.pressed = False
    talk.run("/regen")
    assert talk.messages[-1] == ("assistant", "42")


@pytest.mark.parametrize("error", [SystemExit(128 + signal.SIGHUP), OSError("the screen is gone")])
def test_an_answer_so_far_is_kept_if_the_window_is_closed(error: BaseException) -> None:
    class Closed(io.BytesIO):
        def write(self, data: object) -> int:
            raise error

    talk = Talk(reply("So far", finish_reason="cancelled"))
    talk.chat.screen = Screen(Closed(), talk.err)
    with pytest.raises(type(error)):
        talk.ask(SUM)
    assert talk.messages == [("user", SUM), ("assistant", "So far")]


def test_ctrl_c_in_a_long_prefill_is_acknowledged_at_once() -> None:
    def prefill() -> Generation:
        generation = Generation()
        stopped = reply("", finish_reason="cancelled")
        threading.Timer(0.1, talk.interrupts.press, [signal.SIGINT, None]).start()
        threading.Timer(0.8, generation._finish, [stopped]).start()
        return generation

    talk = Talk(prefill)
    talk.ask(SUM)
    assert "stopping" in talk.shown.partition("(stopped before")[0]


def test_an_answer_is_laid_out_at_a_terminal_and_unchanged_if_the_user_wants_it_raw() -> None:
    talk = Talk(reply("**42**"), reply("**42**"), renders=True)
    talk.ask(SUM)
    assert b"**" not in talk.out.getvalue()
    talk.run("/raw")
    assert screen.wants_raw()
    talk.out.truncate(0)
    talk.ask(SUM)
    assert talk.out.getvalue().endswith(b"**42**\n")
    talk.run("/raw off")
    assert not screen.wants_raw()
    assert not talk.chat.screen.raw
    with pytest.raises(MgmError, match="on or off"):
        talk.run("/raw please")


def test_an_answer_that_is_interrupted_by_a_call_continues_on_a_new_line() -> None:
    talk = Talk(renders=True)
    screen = talk.chat.screen
    screen.answer("one")
    screen.aside("look()")
    screen.answer("two")
    screen.end_answer()
    assert talk.out.getvalue() == b"one\x1b[K\ntwo\x1b[K\n"


def test_the_last_message_and_its_answer_are_shown_again() -> None:
    talk = Talk(reply("one"), reply("two"), MgmError("lost"), renders=True)
    talk.ask("first", f"second {'long ' * 100}")
    before, shown = len(talk.out.getvalue()), len(talk.shown)
    talk.chat.show_last()
    assert b"two" in talk.out.getvalue()[before:]
    assert "> second long" in talk.shown[shown:]
    assert len(talk.shown[shown:]) < 300
    with pytest.raises(MgmError):
        talk.ask("third")
    before = len(talk.out.getvalue())
    talk.chat.show_last()
    assert "> third" in talk.shown
    assert len(talk.out.getvalue()) == before


def test_notes_fit_the_window_and_keep_their_parts_together() -> None:
    talk = Talk(reply("one"))
    parts = ["a part that is not very short"] * 5
    talk.chat.screen.note(*parts)
    lines = talk.shown.replace("\x1b[2m", "").replace("\x1b[0m", "").splitlines()
    assert lines == [" · ".join(parts[:2])] * 2 + parts[:1]
    pipe = Talk(terminal=False)
    pipe.chat.screen.note(*parts)
    assert pipe.shown == f"{' · '.join(parts)}\n"


def test_a_cache_that_is_not_usable_is_reported_in_a_line(tmp_path: Path) -> None:
    talk = Talk(reply("one"))
    talk.chat.restore(tmp_path / "cache.safetensors")
    assert "is prefilled again" in talk.words
    assert talk.words.count("mgm: ") == 1


def test_a_wrong_model_leaves_the_one_that_is_loaded() -> None:
    talk = Talk(reply("still here"))
    talk.loads = [errors.CheckpointError("damaged")]
    for name, why in [("no-such", "no-such"), ("a/b", "mgm pull a/b"), ("demo", "damaged")]:
        with pytest.raises(MgmError, match=why):
            talk.run(f"/model {name}")
    assert not talk.engine.closed
    talk.ask("Hi")
    assert talk.out.getvalue() == b"still here\n"


def test_if_two_models_do_not_fit_the_old_one_makes_room_and_comes_back(tmp_path: Path) -> None:
    talk = Talk()
    again = FakeEngine(reply("back again"))
    talk.loads = [errors.NotEnoughMemoryError("no room"), errors.CheckpointError("damaged"), again]
    talk.run(f"/model {tmp_path}")
    name = str(tmp_path)
    assert talk.loaded[1:] == [(name, False), (name, True), ("demo", True)]
    assert "damaged" in talk.shown
    talk.ask("Hi")
    assert talk.out.getvalue() == b"back again\n"


def test_if_the_old_model_cannot_come_back_the_error_says_that_none_is_loaded() -> None:
    talk = Talk()
    small = FakeEngine(reply("here"))
    small.room = 0
    talk.loads = [*[errors.NotEnoughMemoryError("no room")] * 3, small]
    with pytest.raises(MgmError, match=r"^no model is loaded now: /model NAME loads one$"):
        talk.run("/model demo")
    assert "mgm: no room" in talk.shown
    assert talk.engine.closed
    assert talk.chat.context == FakeEngine.room
    talk.run("/model demo")
    assert talk.chat.context == 8192  # the model's own, if no context seems to fit in memory
    talk.ask("Hi")
    assert talk.out.getvalue() == b"here\n"


def test_a_model_warms_up_while_the_first_message_to_it_is_typed() -> None:
    talk, other = Talk(), FakeEngine(reply("here"))
    talk.loads.append(other)
    talk.type("/model demo", "Hi")
    assert talk.engine.warmed_up
    assert other.warmed_up
    piped = Talk(reply("here"), terminal=False)
    commands.answer_lines(piped.chat, [b"Hi"])  # it comes at once
    assert not piped.engine.warmed_up


def test_an_answer_goes_to_the_clipboard_of_the_system_or_of_the_terminal(
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
    assert clipboard.copy(ODD, screen) == "copied with xclip"
    assert (tmp_path / "copied").read_bytes() == ODD.encode()
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(MgmError, match="xclip failed"):
        clipboard.copy("text", screen)


@pytest.mark.slow
def test_ten_turns_prefill_only_what_is_new_and_answer_as_from_scratch() -> None:
    params = SamplingParams(temperature=0, max_tokens=64, num_draft_tokens=2, thinking=True)
    screen = Screen(io.BytesIO(), io.StringIO())
    with load("demo") as engine:
        assert 0 < engine.longest_context() <= engine.config.max_position_embeddings
        chat = Chat(lambda _: engine, Transcript(Conversation()), params, screen)
        before = 0
        for number in range(10):
            chat.ask(f"What is {17 + number} + 25?")
            assert chat.last.reused_tokens >= before  # all but the last answer and the new message
            before = chat.last.prompt_tokens
            if number == 0:
                assert chat.transcript.answer["reasoning"]
            if number % 3 == 0:  # prefilling the whole conversation ten times is slow on a CPU
                fresh = engine.generate(chat.transcript.prompt[:-1], params)[0].message
                assert chat.transcript.answer == fresh
        assert before > 200
