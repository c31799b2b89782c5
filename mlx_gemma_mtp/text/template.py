"""The chat templates of a checkpoint: where they are found, and one as it is rendered.

Knows nothing of tokens, nor of which messages are allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_gemma_mtp.errors import CheckpointError, UsageError, one_line
from mlx_gemma_mtp.files.checkpoint import read_json

DEFAULT, TOOL_USE = "default", "tool_use"  # names of templates

# In the order in which Transformers and older tools look for them, after the .jinja files.
CONFIGS = ("tokenizer_config.json", "chat_template.json", "processor_config.json")

# What clients call the thought of a message. Transformers gives it to templates as the first two.
REASONING = ("reasoning_content", "thinking", "reasoning")

TOO_DEEP = "these messages or tools are nested too deeply for a chat template: make them flatter"


def read_templates(folder: Path) -> dict[str, str]:
    """Return a checkpoint's chat templates by name, from the first place that has a default.

    Empty if there is none. Raises CheckpointError for an entry that is not a template.
    """
    others = sorted(folder.glob("additional_chat_templates/*.jinja"))
    files = {DEFAULT: folder / "chat_template.jinja"} | {path.stem: path for path in others}
    places = [{name: _read(path) for name, path in files.items() if path.is_file()}]
    for name in CONFIGS:
        path = folder / name
        if path.is_file():
            places.append(_templates(read_json(path).get("chat_template"), path))
    written = [{name: one for name, one in place.items() if one.strip()} for place in places]
    found = [templates for templates in written if templates]
    return next((one for one in found if DEFAULT in one), found[0] if found else {})


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _templates(value: Any, path: Path) -> dict[str, str]:
    """Return the templates in a config's entry: one, or several with names."""
    if value is None:
        return {}
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        value = {one.get("name"): one.get("template") for one in value}
    named = {DEFAULT: value} if isinstance(value, str) else value
    texts = isinstance(named, dict) and all(
        isinstance(part, str) for pair in named.items() for part in pair
    )
    if not texts:
        raise CheckpointError(f"{path}: chat_template is neither text nor a list of templates")
    return dict(named)


def choose(templates: Mapping[str, str], *, tools: bool) -> str:
    """Return the template for a prompt. tools: it declares some.

    Raises UsageError if the checkpoint has no template, CheckpointError if it has others only.
    """
    names = (TOOL_USE, DEFAULT) if tools else (DEFAULT,)
    found = next((templates[name] for name in names if name in templates), None)
    if found is None and templates:
        named = ", ".join(sorted(templates))
        raise CheckpointError(
            f'the checkpoint has chat templates for {named}, but no "{DEFAULT}": '
            "save the one to use as chat_template.jinja in its folder"
        )
    if found is None:
        raise UsageError(
            "the checkpoint has no chat template: give plain text (mgm generate) or token ids, "
            "or put the original model's chat_template.jinja into its folder"
        )
    return found


def render(template: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """Return a conversation as text. options: all other variables of the template.

    Raises UsageError if the template refuses the messages.
    """
    from jinja2 import TemplateError  # with the first conversation: takes 0.1 s

    from mlx_gemma_mtp.text.jinja import compiled

    # Transformers defines these two; a template may ask whether they are none.
    options = {"tools": None, "documents": None} | options
    shown = [_with_reasoning(message) for message in messages]
    try:
        return compiled(template).render(messages=shown, **options)
    except RecursionError:
        raise UsageError(TOO_DEEP) from None
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        SyntaxError,
        TypeError,
        ValueError,
    ) as error:
        reason = one_line(error)
        raise UsageError(f"the chat template refuses these messages: {reason}") from None


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message that names its thought as each family of templates does."""
    thought = next((message[name] for name in REASONING if message.get(name) is not None), None)
    if thought is None:
        return dict(message)
    return {"thinking": thought, **message, "reasoning_content": thought}
