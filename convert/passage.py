"""The text that quality is measured on: prose, answers to questions, and small exercises.

It ships in passages.jsonl, written for this project. Knows its tokens, and nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.tokenizer import Text

BOS = 2  # every Gemma 4 tokenizer's; without it the first words of a text are noise
WINDOW = 512  # tokens; longer prose is cut into documents of this length


class Document(NamedTuple):
    """Tokens that are read together, from position 0."""

    part: str
    tokens: list[int]
    first: int  # the first token that counts; those before it are given


def shipped(text: Text) -> list[Document]:
    """Return the shipped text: prose counts whole, answers count after their questions."""
    documents = []
    for entry in _passages():
        if "text" in entry:
            documents += prose(text, entry["text"], entry["part"])
        else:
            prompt = text.prompt(entry["question"])
            answer = text.encode(f"{entry['answer']}<turn|>")
            documents.append(Document(entry["part"], [*prompt, *answer], len(prompt)))
    return documents


def questions() -> list[str]:
    """Return the shipped text's questions, as prompts for a drafter's acceptance."""
    return [entry["question"] for entry in _passages() if "question" in entry]


def prose(text: Text, content: str, part: str) -> list[Document]:
    """Cut plain text into documents of at most WINDOW tokens."""
    tokens = text.encode(content.strip())
    size = WINDOW - 1
    cuts = [tokens[at : at + size] for at in range(0, len(tokens), size)]
    return [Document(part, [BOS, *cut], 1) for cut in cuts]


def read_text(text: Text, path: Path) -> list[Document]:
    """Return a file as prose, with its name as the part. Raises UsageError."""
    return prose(text, _content(path), path.name)


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a file, without empty ones. Raises UsageError."""
    return [line for line in _content(path).splitlines() if line.strip()]


def at_most(documents: Sequence[Document], num_tokens: int) -> list[Document]:
    """Return the first documents of each part, up to this number of tokens that count."""
    left = {document.part: num_tokens for document in documents}
    kept = []
    for document in documents:
        end = min(len(document.tokens), document.first + left[document.part])
        if end > document.first:
            kept.append(document._replace(tokens=document.tokens[:end]))
            left[document.part] -= end - document.first
    return kept


def _passages() -> list[dict[str, str]]:
    lines = Path(__file__).with_name("passages.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _content(path: Path) -> str:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as text ({error})") from None
    if not content.strip():
        raise UsageError(f"{path} is empty: give a file with text")
    return content
