"""The package as apps see it: its names, what they show of themselves, its log."""

import inspect
import logging
import subprocess
import sys
from concurrent.futures import Future
from typing import Any

import pytest

import mlx_gemma_mtp
from helpers.fake_target import PARAMS, fake_engine
from helpers.spelled import NumbersText
from mlx_gemma_mtp import Engine, MgmError, SamplingParams, UsageError, errors
from mlx_gemma_mtp.engine.aload import without_blocking
from mlx_gemma_mtp.text.tokenizer import Text


def test_every_name_can_be_imported_and_listed_and_all_errors_are_among_them() -> None:
    for name in mlx_gemma_mtp.__all__:
        assert getattr(mlx_gemma_mtp, name) is not None
        assert name in dir(mlx_gemma_mtp)
    kinds = {name for name, one in vars(errors).items() if inspect.isclass(one)}
    assert kinds <= {*mlx_gemma_mtp.__all__}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mlx_gemma_mtp.nothing


def test_completion_offers_what_apps_need() -> None:
    assert {*dir(mlx_gemma_mtp)} == {*mlx_gemma_mtp.__all__}
    with fake_engine() as engine:
        generation, session = engine.submit([5], PARAMS), engine.session()
        shown = {name for name in dir(generation) if name[0] != "_"} - {*dir(Future)}
        assert shown == {"close", "completion", "prompt_tokens", "text"}
        assert generation.prompt_tokens == 1
        assert [one for one in dir(session) if one[0] != "_"] == ["asave", "close", "fork", "save"]
        generation.result()


def test_names_are_there_before_anything_is_imported_and_importing_is_silent() -> None:
    script = (
        "import sys, mlx_gemma_mtp as m\n"
        "assert {'Engine', 'UsageError', 'load'} <= {*dir(m)}\n"
        "assert 'mlx.core' not in sys.modules\n"
        "import logging; logging.getLogger('mlx_gemma_mtp').warning('nobody asked')\n"
        "from mlx_gemma_mtp import *\n"
        "assert load and UsageError"
    )
    run = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_what_public_names_do_is_documented() -> None:
    for name in mlx_gemma_mtp.__all__:
        one = getattr(mlx_gemma_mtp, name)
        if not inspect.isclass(one):
            continue
        assert one.__doc__, name
        for method, of in vars(one).items():
            if not method.startswith("_") and (callable(of) or isinstance(of, property)):
                assert of.__doc__, f"{name}.{method}"


def test_an_engine_shows_what_it_is_and_counts_tokens(text: Text) -> None:
    with fake_engine(text=text) as engine:
        assert repr(engine) == "<Engine without a name, drafter without a name>"
        assert not engine.closed
        ids = engine.encode("Hello, world")
        assert engine.decode(ids) == "Hello, world"
        assert engine.count_tokens([5, 6, 7]) == 3
        assert repr(engine.session()) == "<Session 0 tokens>"
    assert engine.closed
    assert "closed" in repr(engine)
    with fake_engine() as engine, pytest.raises(UsageError, match="no tokenizer"):
        engine.encode("Hello")


def test_a_prompt_is_counted_with_its_template_and_its_tools(text: Text) -> None:
    tool = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    with mlx_gemma_mtp.load("demo", None) as engine:
        alone = engine.count_tokens("Hi")
        assert alone == len(text.prompt("Hi"))
        assert engine.count_tokens("Hi", tools=[{"type": "function", "function": tool}]) > alone


def test_what_happens_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Any) -> None:
        raise ValueError("broken")

    caplog.set_level(logging.INFO, "mlx_gemma_mtp")
    with fake_engine(text=NumbersText()) as engine, pytest.raises(MgmError):
        engine.submit([5], PARAMS, broken).result()
    words = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in words] == ["INFO", "WARNING", "INFO"]
    assert "opened <Engine" in words[0][1]
    assert "ValueError: broken" in words[1][1]
    assert "closed <Engine" in words[2][1]
    assert {record.name for record in caplog.records} == {"mlx_gemma_mtp"}


def test_aload_takes_the_arguments_of_load_and_closes_what_nobody_waits_for() -> None:
    import asyncio
    import threading

    assert inspect.signature(mlx_gemma_mtp.aload) == inspect.signature(mlx_gemma_mtp.load)
    resume, closed, made = threading.Event(), threading.Event(), list[Engine]()

    def load(*, cancel: threading.Event | None = None) -> Engine:
        assert resume.wait(60)
        assert cancel is not None
        assert cancel.is_set()  # and came too late
        made.append(fake_engine())
        close = made[0].close
        made[0].close = lambda: (close(), closed.set())[0]  # type: ignore[method-assign]
        return made[0]

    async def main() -> None:
        loading = asyncio.ensure_future(without_blocking(load)())
        await asyncio.sleep(0)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        resume.set()

    asyncio.run(main())
    assert closed.wait(60)
    assert made[0].closed


@pytest.mark.slow
def test_aload_opens_the_demo_for_a_block() -> None:
    import asyncio

    async def main() -> str:
        async with await mlx_gemma_mtp.aload("demo") as engine:
            assert engine.name == "gemma-4-demo-it"
            done = await engine.submit("What is 17 + 25?", SamplingParams(temperature=0))
            return done.text

    assert "42" in asyncio.run(main())
