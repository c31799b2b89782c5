"""Where a prompt starts and a turn ends, whichever of a checkpoint's files says so."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from helpers.broken import put, set_values
from helpers.small_files import CONFIG, GENERATION, NAMES, TEMPLATE, TOKENIZER, WRITTEN, small_files
from mlx_gemma_mtp.errors import CheckpointError, UsageError
from mlx_gemma_mtp.files.names import DEMO
from mlx_gemma_mtp.text.tokenizer import Text

BOM = "\ufeff"
HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "?"}}
NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": WRITTEN}]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (TEMPLATE, WRITTEN),
        (TEMPLATE, BOM + WRITTEN),
        (NAMES, {"chat_template": WRITTEN}),
        (NAMES, {"chat_template": NAMED}),
        ("chat_template.json", {"chat_template": WRITTEN}),
        ("chat_template.json", {"chat_template": {"default": WRITTEN}}),
        ("processor_config.json", {"chat_template": WRITTEN, "image_seq_length": 280}),
    ],
    ids=lambda one: str(one)[:40],
)
def test_a_chat_template_is_found_in_every_place(
    text: Text, tmp_path: Path, file: str, content: Any
) -> None:
    folder = small_files(tmp_path, without=TEMPLATE)
    put(file, content if isinstance(content, str) else json.dumps(content))(folder)
    assert Text(folder).has_template
    assert Text(folder).prompt("Hi") == text.prompt("Hi")


def test_the_first_place_with_a_default_template_counts(tmp_path: Path) -> None:
    folder = small_files(tmp_path, without=TEMPLATE)
    places = ("processor_config.json", "chat_template.json", NAMES)
    for place in places:
        put(place, json.dumps({"chat_template": f"{place} "}))(folder)
        assert place in Text(folder).decode(Text(folder).prompt("Hi"))
    put(TEMPLATE, " \n")(folder)  # empty
    assert NAMES in Text(folder).decode(Text(folder).prompt("Hi"))
    put(TEMPLATE, "jinja")(folder)
    assert Text(folder).decode(Text(folder).prompt("Hi")) == "<bos>jinja"


def test_a_prompt_with_tools_takes_the_template_for_tools(tmp_path: Path) -> None:
    folder = small_files(tmp_path)
    (folder / "additional_chat_templates").mkdir()
    put("additional_chat_templates/tool_use.jinja", "with tools")(folder)
    assert Text(folder).decode(Text(folder).chat(HI, tools=[TOOL])) == "<bos>with tools"
    assert "with tools" not in Text(folder).decode(Text(folder).chat(HI, tools=[]))


def test_templates_without_a_default_are_named(tmp_path: Path) -> None:
    folder = small_files(tmp_path, without=TEMPLATE)
    put(NAMES, json.dumps({"chat_template": NAMED[:1]}))(folder)
    for prompt in ("Hi", HI):
        with pytest.raises(CheckpointError, match="tool_use"):
            Text(folder).prompt(prompt)
    assert Text(folder).decode(Text(folder).chat(HI, tools=[TOOL])) == "<bos>tools"


@pytest.mark.parametrize("entry", [5, [5], [{}], {"default": 5}, [{"name": "x"}]])
def test_an_entry_that_is_no_template_is_refused(tmp_path: Path, entry: Any) -> None:
    folder = small_files(tmp_path)
    put("chat_template.json", json.dumps({"chat_template": entry}))(folder)
    with pytest.raises(CheckpointError, match=r"chat_template\.json"):
        Text(folder)


def test_a_missing_template_is_known_and_only_text_is_taken(tmp_path: Path) -> None:
    plain = Text(small_files(tmp_path, without=TEMPLATE))
    assert not plain.has_template
    assert plain.decode(plain.prompt("Hi")) == "<bos>Hi"
    with pytest.raises(UsageError, match="no chat template"):
        plain.prompt(HI)


@pytest.mark.parametrize("writes", ["{{ bos_token }}", "<bos>", "<bos>{{ bos_token }}", "", None])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("named", ["name", "config", "text_config", "vocabulary"])
def test_bos_is_first_exactly_once(
    tmp_path: Path, writes: str | None, adds: bool, named: str
) -> None:
    folder = small_files(tmp_path, without=TEMPLATE)
    if writes is not None:
        put(TEMPLATE, writes + "{{ messages[0].content }}")(folder)
    if not adds:
        set_values({"post_processor": None}, TOKENIZER)(folder)
    if named != "name":
        set_values({"bos_token": ...}, NAMES)(folder)
    if named in ("text_config", "vocabulary"):
        for file in (CONFIG, GENERATION):
            set_values({"bos_token_id": ...}, file)(folder)
    if named == "text_config":
        set_values({"text_config": {"bos_token_id": 2}})(folder)
    one = Text(folder)
    spelled = one.encode("<")[0]
    assert one.prompt("Hi") == [2, *one.encode("Hi")]
    assert one.prompt("<bos>Hi")[:2] == [2, spelled]


def test_a_tokenizer_without_bos_starts_with_the_text(tmp_path: Path) -> None:
    folder = small_files(tmp_path, without=TEMPLATE)
    raw = (folder / TOKENIZER).read_text().replace('"<bos>"', '"<begin>"')
    put(TOKENIZER, raw)(folder)
    for file in (CONFIG, GENERATION):
        set_values({"bos_token_id": None}, file)(folder)
    one = Text(folder)
    assert one.prompt("Hi") == one.encode("Hi")


def test_ends_come_from_the_tokenizer_and_from_the_template(tmp_path: Path) -> None:
    folder = small_files(tmp_path)
    assert Text(folder).end_tokens() == [1, 50, 106]  # <eos>, <|tool_response>, <turn|>
    raw = (folder / TOKENIZER).read_text()
    for old, new in {
        "<turn|>": "<|im_end|>",
        "<|tool_response>": "<gone>",
        "<mask>": "<x>",
    }.items():
        raw = raw.replace(json.dumps(old), json.dumps(new))
    put(TOKENIZER, raw)(folder)
    assert Text(folder).end_tokens() == [1]
    put(TEMPLATE, WRITTEN.replace("<turn|>", "<|im_end|>"))(folder)
    assert Text(folder).end_tokens() == [1, 106]
    put(TEMPLATE, "{{ bos_token }}{{ messages[0].content }}")(folder)
    assert Text(folder).end_tokens() == [1]
    set_values({"extra_special_tokens": {"eot_token": "<x>"}}, NAMES)(folder)
    assert Text(folder).end_tokens() == [1, 4]
    set_values({"extra_special_tokens": ["<x>"]}, NAMES)(folder)
    set_values({"eot_token": "<x>", "eos_token": {"content": "<pad>"}}, NAMES)(folder)
    assert Text(folder).end_tokens() == [0, 4]
    set_values({"eot_token": "<nowhere>", "eos_token": None}, NAMES)(folder)
    assert Text(folder).end_tokens() == []
    put(TEMPLATE, "{% if %}")(folder)
    assert Text(folder).end_tokens() == []


def test_a_special_token_that_only_a_config_names_cannot_be_spelled(tmp_path: Path) -> None:
    folder = small_files(tmp_path)
    raw = json.loads((folder / TOKENIZER).read_text())
    for token in raw["added_tokens"]:
        token["special"] = False
    put(TOKENIZER, json.dumps(raw))(folder)
    set_values({"think_token": "<|think|>", "pad_token": {"content": "<pad>"}}, NAMES)(folder)
    one = Text(folder)
    spelled = one.prompt("<|think|><pad><turn|><|channel>")
    assert one.decode(spelled) == one.decode(one.prompt("Hi")).replace(
        "Hi", "<|think|><pad><turn|><|channel>"
    )
    assert {98, 0} & {*spelled} == set()
    assert spelled.count(106) == one.prompt("Hi").count(106)


@pytest.mark.parametrize("file", [TOKENIZER, NAMES, CONFIG])
def test_a_byte_order_mark_before_a_file_of_the_tokenizer_is_dropped(
    text: Text, tmp_path: Path, file: str
) -> None:
    folder = small_files(tmp_path)
    put(file, BOM + (folder / file).read_text())(folder)
    assert Text(folder).prompt("Hi") == text.prompt("Hi")


@pytest.mark.parametrize("config", [None, "{", '{"final_logit_softcapping": 30}', '{"x": 1}'])
def test_a_tokenizer_does_not_depend_on_the_model(
    text: Text, tmp_path: Path, config: str | None
) -> None:
    folder = small_files(tmp_path, without=CONFIG)
    if config is not None:
        put(CONFIG, config)(folder)
    assert Text(folder).prompt("Hi") == text.prompt("Hi")


def test_a_tokenizer_of_another_kind_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = small_files(tmp_path)
    set_values({"decoder": {"type": "Fuse"}}, TOKENIZER)(folder)
    with pytest.raises(CheckpointError, match=r"\A[^\n]*tokenizer\.json[^\n]*decoder[^\n]*\Z"):
        Text(folder)


def test_a_length_saved_by_a_training_tool_neither_cuts_nor_pads_a_prompt(
    text: Text, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_str((DEMO / TOKENIZER).read_text())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=512)
    put(TOKENIZER, tokenizer.to_str())(small_files(tmp_path))
    assert Text(tmp_path).prompt("Hi there") == text.prompt("Hi there")
