"""Write api.md from the docstrings of the package: `make docs`. A test keeps the page current.

Each entry links to the sections of python.md that use it. There, an object of a class is in a
variable with the class's name.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import mlx_gemma_mtp
from mlx_gemma_mtp import MgmError

WIDTH = 88  # of a signature on one line
# What a docstring says of parameters, at the start of a line or a sentence.
NAMED = re.compile(r"(\A|\n\n|\n|(?<=\.) )(\w+(?:,\s\w+)*):\s")

# Public to the package's own rooms, and not for apps.
INSIDE = {
    "Engine": "check_length",
    "Generation": "add_done_callback set_exception set_result",
    "SamplingParams": "resolved stop_strings",
    "Stats": "count_round",
}

# What `__init__` sets, for apps to read, or to change.
ATTRIBUTES = {
    "Chat": {
        "params": "SamplingParams | None",
        "max_rounds": "int",
        "tools": "list[dict[str, Any]]  # the schemas of its functions",
    },
    "Engine": {
        "name": "str | None",
        "drafter_name": "str | None",
        "has_drafter": "bool",
        "notes": "tuple[str, ...]",
        "config": "TargetConfig  # the sizes of the target, as its config.json names them",
        "text": "Text | None  # the tokenizer and the chat template",
    },
}

HEAD = """\
# API reference

Everything here can be imported from `mlx_gemma_mtp`. Written by `make docs` from the docstrings.
The links lead to tested examples in [the guide](python.md).
"""

GUIDE = Path(__file__).parent / "python.md"
# The variables there.
SHORT = {
    "CallDelta": "delta",
    "ChatEvent": "event",
    "TokenLogprobs": "logprobs",
    "ToolCall": "call",
}
SECTIONS = {
    title: "\n".join(re.findall(r"(?ms)^```python\n(.*?)^```", section))
    for title, section in re.findall(r"(?ms)^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE.read_text())
}


def used(pattern: str) -> str:
    """Return a line with links to what uses this in the guide; empty if nothing does."""
    titles = [title for title, code in SECTIONS.items() if re.search(rf"\b({pattern})\b", code)]
    links = (f"[{title}](python.md#{title.lower().replace(' ', '-')})" for title in titles)
    return f"Examples: {', '.join(links)}.\n" if titles else ""


def annotation(value: Any) -> str:
    """Return a type as it is written in the source."""
    shown = value if isinstance(value, str) else getattr(value, "__forward_arg__", repr(value))
    return str(shown).replace("'", '"')


def signature(name: str, function: Callable[..., Any]) -> str:
    """Return a call as it may be written, with one parameter a line if it is long."""
    called = inspect.signature(function)
    shown, before = [], None
    for one in called.parameters.values():
        if one.name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and before not in (one.KEYWORD_ONLY, one.VAR_POSITIONAL):
            shown.append("*")
        before = one.kind
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        kind = "" if one.annotation is one.empty else f": {annotation(one.annotation)}"
        default = "" if one.default is one.empty else f" = {written(one.default)}"
        shown.append(f"{stars}{one.name}{kind}{default}")
    returns = called.return_annotation
    end = ")" if returns is called.empty else f") -> {annotation(returns)}"
    line = f"{name}({', '.join(shown)}{end}"
    parts = "".join(f"    {part},\n" for part in shown)
    return line if len(line) <= WIDTH else f"{name}(\n{parts}{end}"


def written(value: Any) -> str:
    """Return a default as it is written in the source."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


def text(documented: Any, names: Iterable[str]) -> str:
    """Return a docstring, in which sentences about parameters and fields are items of a list."""
    known = {*names}

    def item(found: re.Match[str]) -> str:
        named = found[2].replace(",", "").split()
        if not {*named} <= known:
            return found[0]
        start = found[1] if found[1] in ("", "\n\n") else "\n"
        return f"{start}- {', '.join(f'`{name}`' for name in named)}: "

    return NAMED.sub(item, inspect.getdoc(documented) or "") + "\n"


def fields(one: type) -> Iterator[str]:
    """Yield the fields of a dataclass or a NamedTuple, with their defaults."""
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            missing = field.default is dataclasses.MISSING
            computed = field.default_factory is not dataclasses.MISSING
            default = "" if missing else f" = {written(field.default)}"
            default = " = …" if computed else default
            if not field.name.startswith("_"):
                yield f"{field.name}: {annotation(field.type)}{default}"
    elif issubclass(one, tuple):
        defaults = getattr(one, "_field_defaults", {})
        for name, kind in inspect.get_annotations(one).items():
            default = f" = {written(defaults[name])}" if name in defaults else ""
            yield f"{name}: {annotation(kind)}{default}"


def block(code: str) -> str:
    """Return source as a block."""
    return f"```python\n{code}\n```\n"


def page_of_class(name: str, one: type) -> Iterator[str]:
    """Yield a class: what it is, its fields, then its properties and methods in source order."""
    yield f"## {name}\n"
    variable = SHORT.get(name, name.lower())
    attributes = ATTRIBUTES.get(name, {})
    listed = [*fields(one), *(f"{key}: {kind}" for key, kind in attributes.items())]
    yield text(one, [field.split(":")[0] for field in listed])
    if listed:
        yield block("\n".join(listed))
    yield used(rf"{name}|{variable}\.\w+")
    for key, member in vars(one).items():
        read = isinstance(member, property)
        target: Any = member.fget if read else getattr(member, "__func__", member)
        if key.startswith("_") or key in INSIDE.get(name, "").split():
            continue
        if not inspect.isfunction(target):
            continue
        shown = f".{key}" if read else f".{key}()"
        yield f"### {name}{shown}\n"
        if read:
            kind = annotation(inspect.signature(target).return_annotation)
            yield block(f"{key}: {kind}")
        else:
            yield block(
                ("async " if inspect.iscoroutinefunction(target) else "") + signature(key, target)
            )
        yield text(target, inspect.signature(target).parameters)
        yield used(rf"{variable}\.{key}")


def aliases(public: dict[str, Any]) -> dict[str, Any]:
    """Return the names of types that the page uses and that stand for others, such as Exact."""
    found = {}
    for name, one in public.items():
        hidden = INSIDE.get(name, "").split()
        members = vars(one) if isinstance(one, type) else {name: one}
        shown = [member for key, member in members.items() if key[0] != "_" and key not in hidden]
        for documented in (one, *filter(inspect.isfunction, shown)):
            kinds = " ".join(map(annotation, inspect.get_annotations(documented).values()))
            module = vars(sys.modules[documented.__module__])
            meant = {kind: module.get(kind) for kind in re.findall(r"\b[A-Z]\w+", kinds)}
            found |= {kind: one for kind, one in meant.items() if get_args(one)}
    return dict(sorted(found.items()))


def page() -> Iterator[str]:
    """Yield the whole page: functions, classes, errors, and the names of types."""
    public = {
        name: getattr(mlx_gemma_mtp, name)
        for name in mlx_gemma_mtp.__all__
        if not name.startswith("__")
    }
    yield HEAD
    called = {name: one for name, one in public.items() if inspect.isfunction(one)}
    for name, one in called.items():
        start = "async " if inspect.iscoroutinefunction(one) else ""
        yield f"## {name}()\n"
        yield block(start + signature(name, one))
        yield text(one, inspect.signature(one).parameters)
        yield used(name)
    classes = {name: one for name, one in public.items() if isinstance(one, type)}
    errors = {name: one for name, one in classes.items() if issubclass(one, MgmError)}
    for name, one in classes.items():
        if name not in errors:
            yield from page_of_class(name, one)
    yield "## Errors\n"
    for name, one in sorted(errors.items(), key=lambda pair: pair[0] != "MgmError"):
        yield f"**{name}**({one.__bases__[0].__name__}): {inspect.getdoc(one)}\n"
    yield used("MgmError")
    yield "## Types\n"
    yield "FinishReason, Message and Prompt can be imported; the others are written out here.\n"
    named = {name: one for name, one in public.items() if get_args(one)} | aliases(classes | called)
    shown = (f"{name} = {annotation(meant)}" for name, meant in named.items())
    yield block("\n".join(re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", line) for line in shown))
    yield used("finish_reason|messages")


if __name__ == "__main__":
    print("\n".join(filter(None, page())), end="")
