"""A Chromium for the tests of a file, and for each test a page on a fake server of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from helpers.browser import FakeServer, Reader, chromium


@pytest.fixture(scope="module")  # not longer: its event loop is in the way of others
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    fake = FakeServer()
    with fake.running():
        yield fake


@pytest.fixture
def visit(browser: Any, fake: FakeServer) -> Iterator[Callable[..., Reader]]:
    """Opens the page as a new reader; takes the options of a browser's context."""
    with ExitStack() as stack:

        def visit(**options: Any) -> Reader:
            context = browser.new_context(**options)
            stack.callback(context.close)
            return Reader(context, fake.address)

        yield visit


@pytest.fixture
def reader(visit: Callable[..., Reader]) -> Reader:
    """A reader who has the page in front of them."""
    return visit()
