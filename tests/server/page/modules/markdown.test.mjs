// Markdown becomes the right blocks and spans, quickly, however it is cut off.

import assert from "node:assert/strict";
import { test } from "node:test";
import { inline } from "./inline.js";
import { blocks } from "./markdown.js";

/** Spans in short: text as it is, others as [kind, …]. */
const short = (spans) =>
  spans.reduce((found, { kind, text, href, spans: inside }) => {
    if (kind !== "text") {
      found.push([
        kind,
        ...(href === undefined ? [] : [href]),
        ...(text === undefined ? short(inside ?? []) : [text]),
      ]);
    } else if (typeof found.at(-1) === "string") found[found.length - 1] += text;
    else found.push(text);
    return found;
  }, []);
const read = (text) => short(inline(text));
const kinds = (text) => blocks(text).map(({ kind }) => kind);

test("emphasis follows CommonMark", () => {
  assert.deepEqual(read("**a *b* c**"), [["strong", "a ", ["em", "b"], " c"]]);
  assert.deepEqual(read("***a***"), [["em", ["strong", "a"]]]);
  assert.deepEqual(read("snake_case_name and __init__"), [
    "snake_case_name and ",
    ["strong", "init"],
  ]);
  assert.deepEqual(read("2 * 3 * 4"), ["2 * 3 * 4"]);
  assert.deepEqual(read("~~old~~ ~5"), [["del", "old"], " ~5"]);
  assert.deepEqual(read("**not closed"), ["**not closed"]);
  assert.deepEqual(read("*a _b* c_"), [["em", "a _b"], " c_"]);
  assert.deepEqual(read("\\*a\\* \\\\"), ["*a* \\"]);
});

test("code keeps what is in it", () => {
  assert.deepEqual(read("`*a*` ``b ` c``"), [["code", "*a*"], " ", ["code", "b ` c"]]);
  assert.deepEqual(read("`` ` ``"), [["code", "`"]]);
  assert.deepEqual(read("`open"), ["`open"]);
  assert.deepEqual(read("**`a**`"), ["**", ["code", "a**"]]);
});

test("links keep their addresses", () => {
  assert.deepEqual(read('[a *b*](http://x/y_(z) "t")'), [
    ["link", "http://x/y_(z)", "a ", ["em", "b"]],
  ]);
  assert.deepEqual(read("see https://x.y/a_b_c."), [
    "see ",
    ["link", "https://x.y/a_b_c", "https://x.y/a_b_c"],
    ".",
  ]);
  assert.deepEqual(read("(https://x.y/(a))"), [
    "(",
    ["link", "https://x.y/(a)", "https://x.y/(a)"],
    ")",
  ]);
  assert.deepEqual(read("[https://x](https://x)"), [["link", "https://x", "https://x"]]);
  assert.deepEqual(read("![alt](pic.png)"), [["link", "pic.png", "alt"]]);
  assert.deepEqual(read("[a](b"), ["[a](b"]);
  assert.deepEqual(read("x[0] [1]"), ["x[0] [1]"]);
});

test("lines stay lines", () => {
  assert.deepEqual(read("a  \nb\nc\\\nd"), ["a", ["break"], "b", ["break"], "c", ["break"], "d"]);
});

test("HTML stays text", () => {
  assert.deepEqual(read("<b>x</b> &amp; <https://x>"), [
    "<b>x</b> &amp; ",
    ["link", "https://x", "https://x"],
  ]);
  assert.deepEqual(kinds("<div>\n<script>x</script>"), ["paragraph"]);
});

test("blocks are told apart", () => {
  const text = "# A\nb\n- c\n\n1. d\n> e\n\n***\n```js\nf\n```\n| g | h |\n|---|---|\n| 1 | 2 |\ni";
  const wanted = "heading paragraph list list quote rule code table paragraph";
  assert.deepEqual(kinds(text), wanted.split(" "));
  assert.deepEqual(kinds("In 1986 we won.\n1986. A good year"), ["paragraph"]);
  assert.deepEqual(kinds("a | b\nno table"), ["paragraph"]);
});

test("lists hold lists, paragraphs and code", () => {
  const [list, after] = blocks("3. a\n   - b\n\n     c\n4. ```\n     x\n   ```\n\nafter");
  assert.equal(list.start, 3);
  assert.deepEqual(
    list.items.map((item) => item.blocks.map(({ kind }) => kind)),
    [["paragraph", "list"], ["code"]],
  );
  assert.deepEqual(
    list.items[0].blocks[1].items[0].blocks.map(({ kind }) => kind),
    ["paragraph", "paragraph"],
  );
  assert.equal(list.items[1].blocks[0].text, "  x");
  assert.equal(after.kind, "paragraph");
  assert.deepEqual(
    blocks("- [x] a\n- [ ] b\n- c")[0].items.map(({ checked }) => checked),
    [true, false, null],
  );
});

test("tables have as many cells in each row as in the head", () => {
  const [table] = blocks("| a | b |\n|:-:|--:|\n| 1 | 2 | 3 |\n| x \\| y |");
  assert.deepEqual(table.align, ["center", "right"]);
  assert.deepEqual(
    table.rows.map((row) => row.map(short)),
    [
      [["1"], ["2"]],
      [["x | y"], []],
    ],
  );
});

test("a text that is cut off anywhere has blocks, and those before the end don't change", () => {
  const text =
    "# A\n\nb **c** `d`\n\n- e\n  - f\n\n```py\ng\n```\n\n| h | i |\n|---|---|\n| 1 | 2 |\n\n> j\n\nk [l](http://m)";
  const whole = blocks(text);
  for (let end = 0; end <= text.length; end += 1) {
    const found = blocks(text.slice(0, end));
    found.slice(0, -1).forEach((block, index) => {
      assert.equal(block.source.trim(), whole[index].source.trim());
      assert.equal(block.kind, whole[index].kind);
    });
  }
  assert.deepEqual(blocks("```py\nopen")[0], {
    kind: "code",
    language: "py",
    text: "open",
    source: "```py\nopen",
  });
});

test("no text takes long", () => {
  const parts = [
    "*",
    "_a*",
    "[",
    "[a](",
    "`` ` ",
    "http://",
    "http://a)",
    ")",
    "> ",
    "- ",
    "|-|\n",
    "~~a",
    "\\",
    "![",
    "1. ",
    "# ",
    "  - \n",
  ];
  for (const part of parts) {
    const start = performance.now();
    blocks(part.repeat(20_000));
    blocks(`# http://a${part.repeat(20_000)}`);
    // A second at most where it is linear, a minute and more where it is not.
    assert.ok(performance.now() - start < 5000, JSON.stringify(part));
  }
});
