"""The tools of OpenAI's responses: which of them a model can call, and by which name.

Functions stand alone or in a namespace, as Codex groups those of MCP servers. A custom tool takes
any text: the model sees a function of one string. Knows nothing of calls under way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mlx_gemma_mtp.server.asked import schemas_of
from mlx_gemma_mtp.server.failures import Failure

INPUT = "input"  # the one parameter of a custom tool
CALLABLE = ("function", "custom")


class Called(NamedTuple):
    """What a client knows a tool by."""

    name: str
    namespace: str | None = None
    custom: bool = False


class ResponseTools:
    """The tools of one body.

    used: those that the model sees, as the client gives them; it runs no tools of the server's own,
    such as web_search, so those are left out: clients send them to every server. schemas: as the
    engine takes them.
    """

    def __init__(self, given: Sequence[Mapping[str, Any]]) -> None:
        """Raises Failure."""
        self._called: dict[str, Called] = {}
        self.used: list[Mapping[str, Any]] = []
        found: list[dict[str, Any]] = []
        for number, tool in enumerate(given):
            at, kind = f"tools.{number}", tool.get("type")
            inner = tool.get("tools") if kind == "namespace" else None
            namespace = _text(tool, "name", at) if isinstance(inner, list) else None
            shown = [
                self._function(one, namespace, at)
                for one in (inner if isinstance(inner, list) else [tool])
                if isinstance(one, Mapping) and one.get("type") in CALLABLE
            ]
            self.used += [tool] if shown else []
            found += shown
        self.schemas = schemas_of(found)

    def called(self, name: str) -> Called:
        """Return what the client calls the tool that the model calls by this name.

        A model may leave the namespace out: that is understood if one tool alone has the name.
        """
        if name in self._called:
            return self._called[name]
        same = [one for one in self._called.values() if one.name == name]
        return same[0] if len(same) == 1 else Called(name)

    def _function(self, tool: Mapping[str, Any], namespace: str | None, at: str) -> dict[str, Any]:
        """Return the function that the model sees."""
        name, custom = _text(tool, "name", at), tool["type"] == "custom"
        shown = joined_name(name, namespace)
        self._called[shown] = Called(name, namespace, custom)
        function = {"name": shown, "description": tool.get("description")}
        function["parameters"] = _one_text(tool) if custom else tool.get("parameters")
        return {"type": "function", "function": function}


def joined_name(name: str, namespace: str | None) -> str:
    """Return the name by which the model calls a tool."""
    return f"{namespace.removesuffix('__')}__{name}" if namespace else name


def _one_text(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a custom tool, with the grammar of its text if it has one."""
    grammar, about = tool.get("format"), "The whole input, as text."
    if isinstance(grammar, Mapping) and isinstance(grammar.get("definition"), str):
        about = f"{about} It must follow this grammar:\n{grammar['definition']}"
    text = {"type": "string", "description": about}
    return {"type": "object", "properties": {INPUT: text}, "required": [INPUT]}


def _text(tool: Mapping[str, Any], name: str, at: str) -> str:
    """Return a field of a tool. Raises a Failure if it is not text."""
    value = tool.get(name)
    if not isinstance(value, str) or not value:
        raise Failure(f"{at}.{name} must be text", field=f"{at}.{name}")
    return value
