"""The menu-bar example runs without a screen: what rumps would call is called here."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "menu_bar.py"


class Screen(ModuleType):
    """Stands for rumps: remembers what is shown, and types the questions."""

    def __init__(self, question: str) -> None:
        super().__init__("rumps")
        self.typed = SimpleNamespace(clicked=1, text=question)
        self.alerts: list[tuple[str, str]] = []
        self.running = True

    class App:
        def __init__(self, name: str, title: str, menu: list[Any], quit_button: None) -> None:
            self.title = title

    class MenuItem:
        def __init__(self, title: str, callback: Callable[[Any], object] | None = None) -> None:
            self.callback = callback

        def set_callback(self, callback: Callable[[Any], object] | None) -> None:
            self.callback = callback

    class Timer:
        def __init__(self, callback: Callable[[Any], object], interval: float) -> None:
            self.alive = False

        def start(self) -> None:
            self.alive = True

        def stop(self) -> None:
            self.alive = False

    def Window(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(run=lambda: self.typed)

    def alert(self, title: str, message: str) -> None:
        self.alerts.append((title, message))

    def quit_application(self) -> None:
        self.running = False


def started(question: str, model: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Screen, Any]:
    """Return the screen and the app, once the model is loaded or has failed."""
    screen = Screen(question)
    monkeypatch.setitem(sys.modules, "rumps", screen)
    app = runpy.run_path(str(EXAMPLE))["MenuBar"](model)
    assert app.timer.alive
    assert app.title == "Loading…"
    assert app.asking.callback is None
    app.loading.exception()
    app.look(None)
    return screen, app


def test_a_question_is_answered_and_a_long_answer_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, app = started("What is 17 + 25?", "demo", monkeypatch)
    app.asking.callback(None)
    assert app.asking.callback is None  # one at a time
    app.generation.result()
    app.look(None)
    assert screen.alerts == [("Gemma", "17 + 25 = 42")]
    assert app.title == "Gemma"

    screen.typed.text = "Count from 1 to 100."
    app.asking.callback(None)
    next(app.generation)
    app.stopping.callback(None)
    assert app.generation.result().finish_reason == "cancelled"
    app.look(None)
    assert screen.alerts[1][1].startswith("1")

    app.leave(None)
    assert app.engine.closed
    assert not screen.running


def test_a_model_that_is_missing_is_shown_and_the_app_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, app = started("", "missing", monkeypatch)
    assert "no folder 'missing'" in screen.alerts[0][1]
    assert not app.timer.alive
    assert not screen.running
