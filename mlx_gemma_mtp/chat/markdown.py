"""Markdown as lines for a terminal. markdown-it parses, rich wraps.

Every word stays, in its order. Signs go only if a style or a layout says the same: those of bold,
italics, headings and tables. HTML, formulas, entities and link definitions stay as written. Code
keeps its lines, however long. Knows nothing of streams or screens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import repeat
from typing import NamedTuple, cast

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.tree import SyntaxTreeNode
from rich.text import Text

from mlx_gemma_mtp.show import LEAST, Side, broken, table_lines

LEFT_AS_WRITTEN = ["entity", "html_block", "html_inline", "lheading", "reference"]
ESCAPED = (
    "*_`#+-.~<"  # a backslash in front of these goes; in front of others it may be a formula's
)

STYLES = {"strong": "bold", "em": "italic"}
LISTS = ("bullet_list", "ordered_list")
SIGNS = ("`", "**")
_BARS = re.compile(r"(?<=\S)\s*(?<!\\)\|(?=\s*\S)")  # between two cells
CODE = ("fence", "code_block")


class Part(NamedTuple):
    """A block of a text, or an item of a list: more text changes only the last one."""

    node: SyntaxTreeNode
    source: list[str]  # the lines of the whole text
    start: int  # its first line
    end: int  # the line after its last, blank ones included

    @property
    def after_blank(self) -> bool:
        """True if a blank line is before it."""
        return _after_blank(self.start, self.source)

    @property
    def is_table(self) -> bool:
        """True if every line may change the layout of those before."""
        return self.node.type == "table"

    def completed(self, text: str) -> str:
        """Return the text that ends with this part, with bold and code closed that are open there.

        Or without their first sign, if nothing follows it yet.
        """
        node = self.node
        while node.children:
            node = node.children[-1]
        for sign in () if node.type in CODE else SIGNS:
            line = text[text.rfind("\n") + 1 :]
            if line.count(sign) % 2:
                text = text.rstrip(f"{sign} ")
                line = line.rstrip(f"{sign} ")
                return text + sign * (line.count(sign) % 2)
        return text

    def written(self) -> list[Text]:
        """Return its lines as they are written."""
        lines = "\n".join(self.source[self.start : self.end]).rstrip("\n").split("\n")
        return [Text(line) for line in lines]

    def lines(self, width: int, quiet: str) -> list[Text]:
        """Return its lines, of at most `width` columns if words allow. quiet: a style for signs."""
        return _Layout(self.source, quiet).block(self.node, width)


def parts(text: str) -> list[Part]:
    """Return the parts of a text, in which lines end with a newline only."""
    source = text.split("\n")
    blocks = SyntaxTreeNode(_parser().parse(text)).children
    nodes = [
        node for block in blocks for node in (block.children if block.type in LISTS else [block])
    ]
    starts = list(map(_first, nodes))
    ends = [*starts[1:], len(source)]
    return [Part(*one) for one in zip(nodes, repeat(source), starts, ends, strict=False)]


class _Layout(NamedTuple):
    """The lines of blocks. quiet: the style of signs."""

    source: list[str]
    quiet: str

    def block(self, node: SyntaxTreeNode, width: int) -> list[Text]:
        """Return the lines of a block."""
        match node.type:
            case "paragraph":
                return broken(self.inline(node), width)
            case "heading":
                text = self.inline(node)
                text.style = "bold underline" if node.tag == "h1" else "bold"
                return broken(text, width)
            case "bullet_list" | "ordered_list" | "root":
                return self.blocks(node.children, width)
            case "list_item":
                first = f"{node.info}{node.markup} " if node.info else "- "
                return self.inside(node, Text(first), Text(" " * len(first)), width)
            case "blockquote":
                sign = Text("> ", self.quiet)
                return self.inside(node, sign, sign, width)
            case "table":
                return self.table(node, width)
            case "fence":
                return self.fence(node)
            case "code_block":
                return [Text(f"    {line}") for line in node.content.rstrip("\n").split("\n")]
            case "hr":
                return [Text(node.markup[1:], self.quiet)]
            case _:
                start, end = node.map or (0, 0)
                return [Text(line) for line in self.source[start:end]]

    def blocks(self, nodes: Sequence[SyntaxTreeNode], width: int) -> list[Text]:
        """Return the lines of blocks, with a blank line where they are written with some."""
        lines: list[Text] = []
        for node in nodes:
            if lines and _after_blank(_first(node), self.source):
                lines.append(Text())
            lines += self.block(node, width)
        return lines

    def inside(self, node: SyntaxTreeNode, first: Text, sign: Text, width: int) -> list[Text]:
        """Return the lines of a block's children, after a sign."""
        lines = self.blocks(node.children, max(width - len(sign), LEAST)) or [Text()]
        lines = [Text.assemble(sign if at else first, line) for at, line in enumerate(lines)]
        for line in lines:
            line.rstrip()
        return lines

    def fence(self, node: SyntaxTreeNode) -> list[Text]:
        """Return code between its fences, the second of which may still be missing."""
        first, end = node.map or (0, 0)
        code = node.content.removesuffix("\n").split("\n") if node.content else []
        lines = [Text(f"{node.markup}{node.info}", self.quiet), *map(Text, code)]
        if end - first > 1 and self.source[end - 1].strip(" >").startswith(node.markup):
            lines.append(Text(node.markup, self.quiet))
        return lines

    def table(self, node: SyntaxTreeNode, width: int) -> list[Text]:
        """Return a table; rows that are too wide become lines of a name and a value."""
        parts = [row.children for part in node.children for row in part.children]
        rows = [[self.inline(cell) for cell in row] for row in parts]
        header, body = rows[0], rows[1:]
        first, end = node.map or (0, 0)
        source = [Text(line) for line in self.source[first:end]]
        if not body or any(len(_BARS.findall(line.plain)) > len(header) - 1 for line in source):
            return source  # cells without a column would be lost
        for cell in header:
            cell.stylize("bold")
        styles = [str(cell.attrs.get("style", "text-align:left")) for cell in parts[0]]
        sides = [cast(Side, style.removeprefix("text-align:")) for style in styles]
        return table_lines(rows, sides, len(header), width)

    def inline(self, node: SyntaxTreeNode) -> Text:
        """Return the text of a node, with its styles."""
        match node.type:
            case "text":
                return Text(re.sub(r"<br\s*/?>", "\n", node.content))
            case "softbreak" | "hardbreak":
                return Text("\n")
            case "code_inline":
                sign = (node.markup, self.quiet)
                return Text.assemble(sign, node.content, sign)
            case "image":
                return Text(f"{node.content} ({node.attrs['src']})".lstrip())
        text = Text(style=STYLES.get(node.type, ""))
        for child in node.children:
            text.append_text(self.inline(child))
        if node.type == "link" and text.plain not in (href := str(node.attrs["href"])):
            title = node.attrs.get("title")
            text.append(f' ({href} "{title}")' if title else f" ({href})")
        return text


def _first(node: SyntaxTreeNode) -> int:
    return node.map[0] if node.map else 0


def _after_blank(line: int, source: list[str]) -> bool:
    return line > 0 and not source[line - 1].strip(" >")


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt().enable("table").disable(LEFT_AS_WRITTEN)
    parser.inline.ruler.before("escape", "formula", _formula)
    parser.inline.ruler.before("emphasis", "product", _product)
    parser.normalizeLink = lambda url: url  # type: ignore[method-assign]
    return parser


def _formula(state: StateInline, silent: bool) -> bool:
    r"""Keep the backslash of `\(`, `\{` or `\\`."""
    sign = state.src[state.pos : state.pos + 2]
    if len(sign) < 2 or sign[0] != "\\" or sign[1] == "\n" or sign[1] in ESCAPED:
        return False
    if not silent:
        state.pending += sign
    state.pos += 2
    return True


def _product(state: StateInline, silent: bool) -> bool:
    """Keep the signs of `2*3*4`, `(a)*(b)` and `x^*`: they are not emphasis."""
    found = re.compile(r"\*+|_+").match(state.src, state.pos)
    if found is None:
        return False
    before, after = state.src[: state.pos][-1:], state.src[found.end() :][:1]
    starts, ends = _is_plain(before) or before in ")]}$", _is_plain(after) or after in "([{$"
    if not (before == "^" or (before and after and starts and ends)):
        return False
    if not silent:
        state.pending += found[0]
    state.pos = found.end()
    return True


def _is_plain(letter: str) -> bool:
    return letter.isascii() and letter.isalnum()
