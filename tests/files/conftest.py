"""Fixtures: `tiny` and `broken`, a pair on disk and a copy to break; `mixture`, without torch."""

from helpers.broken import breakable_pair, tiny_pair  # noqa: F401
from helpers.stored import mixture_on_disk  # noqa: F401
