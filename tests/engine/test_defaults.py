"""What a checkpoint says of sampling and of where an answer ends is applied, or named once."""

from pathlib import Path
from typing import Any

import pytest

from helpers.broken import each, put, set_values
from helpers.fake_target import PARAMS, fake_pair, fake_player, output
from helpers.small_files import CONFIG, GENERATION, TEMPLATE, TOKENIZER, small_files
from helpers.spelled import NumbersText, spelled
from mlx_gemma_mtp import Engine, SamplingParams
from mlx_gemma_mtp.engine.defaults import EOS, STOP, notes, read_defaults
from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.checkpoint import read_config
from mlx_gemma_mtp.text.tokenizer import Text

END, TURN_END, TOOL_RESPONSE = 1, 106, 50


@pytest.mark.parametrize("given", [None, ..., {EOS: ...}, {EOS: 1}, {EOS: []}, {EOS: [1, 106]}])
def test_an_answer_ends_with_its_turn_whatever_the_generation_config_says(
    tmp_path: Path, given: Any
) -> None:
    folder = small_files(tmp_path)
    if given is None:
        (folder / GENERATION).unlink()
    elif given is not ...:
        set_values(given, GENERATION)(folder)
    assert read_defaults(folder, Text(folder))[EOS] == [END, TOOL_RESPONSE, TURN_END]


@pytest.mark.parametrize("key", [EOS, f"text_config.{EOS}"])
@pytest.mark.parametrize("value", [[1, 106], 106, [106.0]])
def test_ends_in_the_config_count_also_without_tokenizer(
    tmp_path: Path, key: str, value: Any
) -> None:
    folder = small_files(tmp_path, without=GENERATION)
    set_values({"text_config": read_config(folder), EOS: ...})(folder)
    set_values({f"text_config.{EOS}": ...})(folder)
    set_values({key: value})(folder)
    assert TURN_END in read_defaults(folder, None)[EOS]


def test_an_id_beyond_the_tokenizer_ends_nothing(tmp_path: Path) -> None:
    folder = small_files(tmp_path)
    set_values({"vocab_size": 2112})(folder)
    set_values({EOS: [1, 2100]}, GENERATION)(folder)
    assert read_defaults(folder, None)[EOS] == [1, 2100]
    assert read_defaults(folder, Text(folder))[EOS] == [END, TOOL_RESPONSE, TURN_END]


def test_a_named_end_that_the_embedding_lacks_is_left_out(tmp_path: Path) -> None:
    folder = small_files(tmp_path)
    set_values({"vocab_size": 64})(folder)
    set_values({EOS: 1}, GENERATION)(folder)
    assert read_defaults(folder, Text(folder))[EOS] == [END, TOOL_RESPONSE]


@pytest.mark.parametrize("file", [CONFIG, GENERATION])
@pytest.mark.parametrize("value", ["x", 2048, [1, -1], {"a": 1}, True, 1.5])
def test_an_end_that_is_no_token_is_refused_with_its_file(
    tmp_path: Path, file: str, value: Any
) -> None:
    folder = small_files(tmp_path)
    set_values({EOS: value}, file)(folder)
    with pytest.raises(CheckpointError, match=f"{file}: {EOS}"):
        read_defaults(folder, None)


def test_whole_numbers_may_be_written_with_a_point(tmp_path: Path) -> None:
    folder = small_files(tmp_path)
    set_values({"top_k": 64.0, EOS: [1.0, 106.0]}, GENERATION)(folder)
    found = read_defaults(folder, Text(folder))
    taken = SamplingParams().resolved(found)
    assert (taken.top_k, found[EOS]) == (64, [END, TOOL_RESPONSE, TURN_END])


WRONG: dict[str, list[Any]] = {
    "temperature": ["hot", -1],
    "top_k": [-5, 1.5],
    "top_p": [1.5],
    "min_p": [2, "x"],
    "repetition_penalty": [0, -1],
    STOP: [5, [5], [""]],
}


@each(WRONG)
def test_a_wrong_setting_is_refused_with_its_file(tmp_path: Path, name: str, value: Any) -> None:
    folder = small_files(tmp_path)
    set_values({name: value}, GENERATION)(folder)
    with pytest.raises(CheckpointError, match=rf"{GENERATION}: {name.partition('_s')[0]}"):
        read_defaults(folder, None)


NOT_APPLIED: dict[str, list[Any]] = {
    "penalty_alpha": [0.6],
    "no_repeat_ngram_size": [3],
    "num_beams": [4],
    "min_new_tokens": [5],
    "max_new_tokens": [256],
    "forced_eos_token_id": [106],
    "a_key_of_tomorrow": [True, 0.5],
}


@each(NOT_APPLIED)
def test_a_setting_that_is_not_applied_is_named(name: str, value: Any) -> None:
    assert notes({name: value, "top_k": 64}, None) == (
        f"{GENERATION} asks for {name}={value}, which is not applied",
    )


def test_settings_that_are_not_applied_are_named_in_one_line() -> None:
    lists = {"bad_words_ids": [[5, 6]], "sequence_bias": [[[5], -1.0]], "penalty_alpha": 0.6}
    [line] = notes(lists, None)
    assert line.isprintable()
    assert line.endswith("which are not applied")
    assert all(name in line for name in lists)


OFF: dict[str, list[Any]] = {
    "repetition_penalty": [1, None, 1.1, 0.9],
    "num_beams": [1],
    "min_p": [None, 0, 0.05],
    "bad_words_ids": [None, []],
    "penalty_alpha": [None, 0],
    "pad_token_id": [0, 5],
    "transformers_version": ["5.22.2"],
    "cache_implementation": ["hybrid"],
    "_from_model_config": [True],
    "top_k": [64],
    "suppress_tokens": [[5]],
    "do_sample": [True, False],
}


@each(OFF)
def test_a_setting_that_is_off_applied_or_harmless_is_not_named(name: str, value: Any) -> None:
    assert notes({name: value}, None) == ()


def test_a_missing_chat_template_is_a_note(tmp_path: Path) -> None:
    [line] = notes({}, Text(small_files(tmp_path, without=TEMPLATE)))
    assert "no chat template" in line
    assert notes({}, Text(small_files(tmp_path))) == ()


def test_a_byte_order_mark_before_a_config_is_dropped(tmp_path: Path) -> None:
    folder = small_files(tmp_path)
    for file in (CONFIG, GENERATION, TOKENIZER):
        put(file, "\ufeff" + (folder / file).read_text())(folder)
    assert read_defaults(folder, Text(folder))["top_p"] == 0.95


def test_stop_strings_of_the_checkpoint_end_an_answer_next_to_its_own() -> None:
    prompt = [5, 6, 7]
    tokens = output(prompt, 16)
    pair = fake_pair(text=NumbersText())._replace(defaults={STOP: [spelled(tokens[4:6])]})
    params = SamplingParams(max_tokens=16, temperature=0)
    with Engine(pair, player=fake_player) as engine:
        assert engine.generate(prompt, params)[0].text == spelled(tokens[:4])
        own = SamplingParams(max_tokens=16, temperature=0, stop=spelled(tokens[1:2]))
        assert engine.generate(prompt, own)[0].text == spelled(tokens[:1])
        assert engine.generate(prompt, PARAMS)[0].text == spelled(tokens)  # ignore_eos
    with Engine(pair._replace(text=None), player=fake_player) as engine:
        assert engine.generate(prompt, params)[0].tokens  # nothing to search in
