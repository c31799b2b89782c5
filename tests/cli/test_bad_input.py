"""Whatever is wrong is said in one line by an error of its kind, and nothing else is lost by it."""

import contextlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import MAX_POSITIONS, VOCAB, PairPaths
from mlx_gemma_mtp import Engine, MgmError, SamplingParams, load
from mlx_gemma_mtp.errors import CheckpointError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.files.hub import DEMO

EXIT_CODES = {MgmError: 1, CheckpointError: 1, UsageError: 2, ModelNotFoundError: 3}
LONGEST = 600  # characters of a message, paths included
GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)

Edit = Callable[[Path], None]


def refusal(kind: type[MgmError], call: Callable[[], object]) -> str:
    """The message of the error that the call must raise."""
    with pytest.raises(MgmError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert caught.value.exit_code == EXIT_CODES[kind]
    assert message.isprintable(), message  # so it is one line
    assert 0 < len(message) < LONGEST
    return message


def refused_or_fine(target: Path, drafter: Path | None) -> None:
    """Load and use an odd pair: an error meant for people, or as many tokens as asked."""
    params = SamplingParams(max_tokens=3, temperature=1, seed=0, ignore_eos=True)
    try:
        with load(target, drafter) as engine:
            num_tokens = len(engine.generate([5, 6], params)[0].tokens)
    except MgmError as error:
        message = str(error)
    else:
        message = "fine"
        assert num_tokens == 3
    assert message.isprintable(), message


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """The demo pair, which has a tokenizer."""
    with load("demo") as engine:
        yield engine


@pytest.fixture(scope="module")
def plain_engine(pairs: dict[str, PairPaths]) -> Iterator[Engine]:
    """A target without drafter and without tokenizer."""
    with load(pairs["26B-A4B"].target, None) as engine:
        yield engine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, pairs: dict[str, PairPaths]) -> PairPaths:
    """A pair in single files with text-only names; for tests to copy."""
    from helpers.checkpoints import make_pair

    return make_pair("26B-A4B", tmp_path_factory.mktemp("tiny"), 1)


@pytest.fixture
def broken(tiny: PairPaths, tmp_path: Path) -> PairPaths:
    """A pair that a test may break."""
    return PairPaths(
        shutil.copytree(tiny.target, tmp_path / "target"),
        shutil.copytree(tiny.drafter, tmp_path / "target-assistant"),
    )


def table(cases: dict[str, Any]) -> pytest.MarkDecorator:
    """One test for each named case."""
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


# Arguments of load

NOT_A_MODEL: dict[str, tuple[object, type[MgmError]]] = {
    "missing folder": ("/no/such/folder", ModelNotFoundError),
    "missing relative folder": ("./no-such-folder", ModelNotFoundError),
    "missing folder as a path": (Path("no-such-folder"), ModelNotFoundError),
    "missing name": ("no-such-model", ModelNotFoundError),
    "demo as a path": (Path("demo"), ModelNotFoundError),
    "a file": (DEMO / "config.json", ModelNotFoundError),
    "empty": ("", ModelNotFoundError),
    "blank": (" ", ModelNotFoundError),
    "too many slashes": ("a/b/c", ModelNotFoundError),
    "no Hub name": ("a--b/c", ModelNotFoundError),
    "an option": ("--help/x", ModelNotFoundError),
    "not ASCII": ("ünï/cödé", ModelNotFoundError),
    "no such user": ("~nosuchuser/x", ModelNotFoundError),
    "long": ("x" * 5000, ModelNotFoundError),
    "long Hub name": ("x/" + "y" * 5000, ModelNotFoundError),
    "two lines": ("a\nb", ModelNotFoundError),
    "zero byte": ("a\0b", ModelNotFoundError),
    "the root folder": ("/", CheckpointError),
    "None": (None, UsageError),
    "a number": (5, UsageError),
    "bytes": (b"demo", UsageError),
    "a list": (["demo"], UsageError),
    "a truth value": (False, UsageError),
}


@table(NOT_A_MODEL)
def test_what_is_no_model_is_refused(case: tuple[Any, type[MgmError]]) -> None:
    refusal(case[1], lambda: load(case[0]))


@table({name: case for name, case in NOT_A_MODEL.items() if name != "None"})
def test_what_is_no_drafter_is_refused(case: tuple[Any, type[MgmError]]) -> None:
    refusal(case[1], lambda: load("demo", case[0]))


@pytest.mark.parametrize("bits", [3, 0, -4, 16, 4.0, "4", True, [4]])
def test_bits_other_than_4_or_8_are_refused(bits: Any) -> None:
    assert "bits" in refusal(UsageError, lambda: load("demo", bits=bits))


@pytest.mark.parametrize("max_batch", [0, -1, 9, 1.5, "8", True, None])
def test_a_max_batch_outside_1_to_8_is_refused(max_batch: Any) -> None:
    assert "max_batch" in refusal(UsageError, lambda: load("demo", max_batch=max_batch))


# Checkpoints


def set_values(values: dict[str, Any], file: str = "config.json") -> Edit:
    """Set dotted keys of a JSON file; ... removes the key."""

    def edit(folder: Path) -> None:
        raw = json.loads((folder / file).read_text())
        for dotted, value in values.items():
            *outer, key = dotted.split(".")
            section = raw
            for name in outer:
                section = section[name]
            if value is ...:
                del section[key]
            else:
                section[key] = value
        (folder / file).write_text(json.dumps(raw))

    return edit


def put(file: str, content: str | bytes) -> Edit:
    """Replace a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: void(ignore=(folder / file).write_bytes(data))


def void(*, ignore: object) -> None:
    """For lambdas that must return nothing."""


def remove(file: str) -> Edit:
    return lambda folder: (folder / file).unlink()


def change_arrays(change: Callable[[dict[str, mx.array]], None]) -> Edit:
    """Rewrite the weights after a change to their dictionary."""

    def edit(folder: Path) -> None:
        path = str(folder / "model.safetensors")
        arrays = dict(mx.load(path))
        mx.eval(arrays)
        change(arrays)
        mx.save_safetensors(path, arrays)

    return edit


NOT_A_CHECKPOINT: dict[str, tuple[Edit, str]] = {
    "no config": (remove("config.json"), "config.json"),
    "empty config": (put("config.json", ""), "config.json"),
    "broken config": (put("config.json", '{"model_type": "gem'), "config.json"),
    "config of two lines": (put("config.json", "{\n  x\n}"), "config.json"),
    "config in another encoding": (put("config.json", b"\xff\xfe{\0}\0"), "config.json"),
    "config is a list": (put("config.json", "[1, 2]"), "config.json"),
    "config is a folder": (
        lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").mkdir())[1],
        "config.json",
    ),
    "another model": (set_values({"model_type": "llama"}), "Gemma 4"),
    "Gemma 3": (set_values({"model_type": "gemma3_text"}), "Gemma 4"),
    "no model type": (set_values({"model_type": ...}), "Gemma 4"),
    "model type of a wrong kind": (set_values({"model_type": ["gemma4"]}), "Gemma 4"),
    "no weights": (remove("model.safetensors"), "safetensors"),
    "weights of another format": (
        lambda folder: void(
            ignore=(folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        ),
        "safetensors",
    ),
    "broken generation config": (put("generation_config.json", "{"), "generation_config.json"),
    "generation config is a list": (put("generation_config.json", "[]"), "generation_config.json"),
    "broken tokenizer": (put("tokenizer.json", "{"), "tokenizer"),
    "empty tokenizer": (put("tokenizer.json", ""), "tokenizer"),
    "tokenizer of nothing": (put("tokenizer.json", "{}"), "tokenizer"),
}


@table(NOT_A_CHECKPOINT)
def test_what_is_no_checkpoint_is_refused(broken: PairPaths, case: tuple[Edit, str]) -> None:
    edit, word = case
    edit(broken.target)
    assert word in refusal(CheckpointError, lambda: load(broken.target, None))


def test_a_drafter_given_as_the_model_is_refused(tiny: PairPaths) -> None:
    assert "drafter" in refusal(CheckpointError, lambda: load(tiny.drafter))


def test_a_model_given_as_the_drafter_is_refused(tiny: PairPaths) -> None:
    assert "drafter" in refusal(CheckpointError, lambda: load(tiny.target, tiny.target))


@pytest.mark.parametrize("other", ["E2B", "E4B", "31B"])
def test_a_drafter_of_another_size_is_refused(pairs: dict[str, PairPaths], other: str) -> None:
    target, drafter = pairs["26B-A4B"].target, pairs[other].drafter
    assert "another model" in refusal(CheckpointError, lambda: load(target, drafter))


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "backbone": ({"backbone_hidden_size": 128}, "128"),
    "vocabulary": ({"text_config.vocab_size": 512}, "512"),
    "window": ({"text_config.sliding_window": 24}, "24"),
    "head size": ({"text_config.head_dim": 8}, "head size of sliding_attention"),
    "full head size": ({"text_config.per_layer_config.3.head_dim": 8}, "full_attention"),
    "number of heads": ({"text_config.num_attention_heads": 3}, "heads"),
}


@table(MISFITS)
def test_a_drafter_that_misfits_in_one_size_is_refused(
    broken: PairPaths, case: tuple[dict[str, Any], str]
) -> None:
    values, word = case
    set_values(values)(broken.drafter)
    assert word in refusal(CheckpointError, lambda: load(broken.target))


# What a config.json says

WRONG_VALUES: dict[str, dict[str, Any]] = {
    "a number as a string": {"num_attention_heads": "4"},
    "a float for a count": {"hidden_size": 64.0},
    "a size of null": {"intermediate_size": None, "moe_intermediate_size": None},
    "no heads": {"num_attention_heads": 0},
    "no key/value heads": {"num_key_value_heads": 0},
    "key/value heads that do not divide": {"num_key_value_heads": 3},
    "a negative size": {"intermediate_size": -128},
    "head size of 0": {"head_dim": 0},
    "odd head size": {"head_dim": 15},
    "head size of a full layer as a string": {"per_layer_config.5.head_dim": "32"},
    "no window": {"sliding_window": 0},
    "window that no machine holds": {"sliding_window": 10**12},
    "no layers": {"num_hidden_layers": 0, "layer_types": []},
    "too few layer types": {"layer_types": ["full_attention"]},
    "unknown layer types": {"layer_types": ["linear_attention"] * 6},
    "layer types of a wrong kind": {"layer_types": 5},
    "too many shared layers": {"num_kv_shared_layers": 7},
    "all layers shared": {"num_kv_shared_layers": 6},
    "nothing to share": {"num_kv_shared_layers": 1},
    "negative shared layers": {"num_kv_shared_layers": -1},
    "shared layers as a string": {"num_kv_shared_layers": "2"},
    "per_layer_config of names": {"per_layer_config": {"last": {"head_dim": 32}}},
    "per_layer_config as a list": {"per_layer_config": [1, 2]},
    "per_layer_config of numbers": {"per_layer_config": {"5": 32}},
    "rope_parameters as a string": {"rope_parameters": "x"},
    "rope_parameters of numbers": {"rope_parameters": {"full_attention": 5}},
    "no rope_theta": {"rope_parameters.full_attention.rope_theta": ...},
    "rope_theta of null": {"rope_parameters.sliding_attention.rope_theta": None},
    "rope_theta as a string": {"rope_parameters.sliding_attention.rope_theta": "10000"},
    "rope_theta of 0": {"rope_parameters.full_attention.rope_theta": 0},
    "negative rope_theta": {"rope_parameters.full_attention.rope_theta": -1},
    "unknown rope": {"rope_parameters.full_attention.rope_type": "yarn"},
    "negative rotated share": {"rope_parameters.full_attention.partial_rotary_factor": -1},
    "rotated share above 1": {"rope_parameters.full_attention.partial_rotary_factor": 1.5},
    "epsilon of 0": {"rms_norm_eps": 0},
    "epsilon as a string": {"rms_norm_eps": "1e-6"},
    "epsilon that is no number": {"rms_norm_eps": float("nan")},
    "experts as a string": {"num_experts": "8"},
    "no experts": {"num_experts": 0},
    "experts of null": {"num_experts": None},
    "none of the experts": {"top_k_experts": 0},
    "half an expert": {"top_k_experts": 1.5},
    "more than all experts": {"top_k_experts": 9},
    "experts of no width": {"moe_intermediate_size": 0},
    "softcap as a string": {"final_logit_softcapping": "30"},
    "softcap of 0": {"final_logit_softcapping": 0},
    "context as a string": {"max_position_embeddings": "1024"},
    "no context": {"max_position_embeddings": 0},
    "attention biases": {"attention_bias": True},
    "another activation": {"hidden_activation": "silu"},
    "a head of its own": {"tie_word_embeddings": False},
    "quantization as a string": {"quantization": "x"},
    "quantization as a list": {"quantization": [4]},
    "text_config as a string": {"text_config": "x"},
}


@table(WRONG_VALUES)
def test_a_wrong_value_in_the_config_is_refused(broken: PairPaths, case: dict[str, Any]) -> None:
    set_values(case)(broken.target)
    refusal(CheckpointError, lambda: load(broken.target, None))


KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "num_kv_shared_layers",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "sliding_window",
    "hidden_size_per_layer_input",
    "vocab_size_per_layer_input",
    "final_logit_softcapping",
    "num_experts",
    "top_k_experts",
    "moe_intermediate_size",
    "layer_types",
    "per_layer_config",
    "per_layer_config.5",
    "per_layer_config.5.head_dim",
    "per_layer_config.5.num_key_value_heads",
    "rope_parameters",
    "rope_parameters.full_attention",
    "rope_parameters.full_attention.rope_theta",
    "rope_parameters.full_attention.rope_type",
    "rope_parameters.full_attention.partial_rotary_factor",
    "rope_parameters.sliding_attention.rope_theta",
    "attention_k_eq_v",
    "enable_moe_block",
    "use_double_wide_mlp",
)
STRANGE = (None, "x", "3", -1, 0, 1, 1.5, True, [], {}, [1], {"a": 1}, 10**12, float("nan"), ...)


@pytest.mark.parametrize("key", KEYS)
def test_a_strange_value_in_the_config_is_refused_or_does_no_harm(
    broken: PairPaths, key: str
) -> None:
    before = (broken.target / "config.json").read_text()
    for value in STRANGE:
        (broken.target / "config.json").write_text(before)
        set_values({key: value})(broken.target)
        refused_or_fine(broken.target, None)


@pytest.mark.parametrize("only", ["sliding_attention", "full_attention"])
def test_layers_of_one_kind_are_refused_or_work(
    pairs: dict[str, PairPaths], tmp_path: Path, only: str
) -> None:
    source = pairs["E2B"]  # whose two kinds of layers have the same weights
    target = shutil.copytree(source.target, tmp_path / "target")
    set_values({"text_config.layer_types": [only] * 10})(target)
    refused_or_fine(target, None)
    refused_or_fine(target, source.drafter)


@pytest.mark.parametrize("key", ["layer_types", "num_hidden_layers", "num_centroids"])
def test_a_strange_value_in_a_drafters_config_is_refused_or_does_no_harm(
    pairs: dict[str, PairPaths], tmp_path: Path, key: str
) -> None:
    source = pairs["E2B"]
    drafter = shutil.copytree(source.drafter, tmp_path / "drafter")
    before = (drafter / "config.json").read_text()
    for value in (*STRANGE, ["sliding_attention"] * 4, ["full_attention"] * 4):
        (drafter / "config.json").write_text(before)
        dotted = key if key == "num_centroids" else f"text_config.{key}"
        set_values({dotted: value})(drafter)
        refused_or_fine(source.target, drafter)


GENERATION_CONFIG: dict[str, dict[str, Any]] = {
    "eos as a string": {"eos_token_id": "x"},
    "eos outside the vocabulary": {"eos_token_id": VOCAB},
    "negative eos": {"eos_token_id": [1, -1]},
    "eos of a wrong kind": {"eos_token_id": {"a": 1}},
    "eos a truth value": {"eos_token_id": True},
    "suppressed outside the vocabulary": {"suppress_tokens": [5, VOCAB]},
    "suppressed as a string": {"suppress_tokens": "abc"},
    "temperature as a string": {"temperature": "hot"},
    "temperature below 0": {"temperature": -1},
    "top_k below 0": {"top_k": -5},
    "top_p above 1": {"top_p": 1.5},
}


@table(GENERATION_CONFIG)
def test_a_wrong_generation_default_is_refused(broken: PairPaths, case: dict[str, Any]) -> None:
    set_values(case, "generation_config.json")(broken.target)

    def use() -> None:
        with load(broken.target, None) as engine:
            engine.generate([5])

    with pytest.raises((CheckpointError, UsageError)) as caught:
        use()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("eos", [None, [], 1, [1, 50]])
def test_a_generation_config_may_leave_things_out(broken: PairPaths, eos: Any) -> None:
    set_values({"eos_token_id": eos, "suppress_tokens": None, "temperature": None, "top_k": None})(
        broken.target
    )
    with load(broken.target, None) as engine:
        assert engine.generate([5], SamplingParams(max_tokens=2))[0].tokens


# Files of weights

WEIGHTS = "model.safetensors"


def rewrite_header(change: Callable[[dict[str, Any]], object]) -> Edit:
    """Change what a safetensors file says of itself; the header may become anything."""

    def edit(folder: Path) -> None:
        blob = (folder / WEIGHTS).read_bytes()
        (size,) = struct.unpack("<Q", blob[:8])
        header = json.loads(blob[8 : 8 + size])
        changed = change(header)
        written = json.dumps(header if changed is None else changed).encode()
        start = struct.pack("<Q", len(written)) + written
        (folder / WEIGHTS).write_bytes(start + blob[8 + size :])

    return edit


def entry(**values: Any) -> Edit:
    """Change one tensor's entry in the header; ... removes a key."""

    def change(header: dict[str, Any]) -> None:
        own = header["model.norm.weight"]
        for key, value in values.items():
            if value is ...:
                del own[key]
            else:
                own[key] = value

    return rewrite_header(change)


def resize(change: Callable[[bytes, int], bytes]) -> Edit:
    """Change the bytes of the file, given the length of its header."""

    def edit(folder: Path) -> None:
        blob = (folder / WEIGHTS).read_bytes()
        (size,) = struct.unpack("<Q", blob[:8])
        (folder / WEIGHTS).write_bytes(change(blob, size))

    return edit


def say_size(size: int) -> Edit:
    return resize(lambda blob, _: struct.pack("<Q", size) + blob[8:])


DAMAGED: dict[str, Edit] = {
    "empty": put(WEIGHTS, b""),
    "cut in the length": resize(lambda blob, _: blob[:7]),
    "cut after the length": resize(lambda blob, _: blob[:8]),
    "cut in the header": resize(lambda blob, size: blob[: 8 + size // 2]),
    "cut after the header": resize(lambda blob, size: blob[: 8 + size]),
    "cut in the data": resize(lambda blob, _: blob[: len(blob) // 2]),
    "one byte short": resize(lambda blob, _: blob[:-1]),
    "one byte too many": resize(lambda blob, _: blob + b"x"),
    "a web page": put(WEIGHTS, "<html>404</html>"),
    "a Git LFS pointer": put(WEIGHTS, "version https://git-lfs.github.com/spec/v1\nsize 1\n"),
    "zeros": put(WEIGHTS, bytes(4096)),
    "header of length 0": say_size(0),
    "header one byte shorter": resize(lambda b, n: struct.pack("<Q", n - 1) + b[8:]),
    "header one byte longer": resize(lambda b, n: struct.pack("<Q", n + 1) + b[8:]),
    "header longer than the file": say_size(10**9),
    "header of 2**63 bytes": say_size(2**63),
    "header of 2**64 - 1 bytes": say_size(2**64 - 1),
    "header not text": resize(lambda b, n: b[:8] + b"\xff" * n + b[8 + n :]),
    "header a deep nest": put(WEIGHTS, struct.pack("<Q", 10**5) + b"[" * 10**5 + bytes(9)),
    "header a list": rewrite_header(lambda _: [1]),
    "header empty": rewrite_header(lambda _: {}),
    "entry null": rewrite_header(lambda header: header.update({"model.norm.weight": None})),
    "entry a list": rewrite_header(lambda header: header.update({"model.norm.weight": []})),
    "metadata a number": rewrite_header(lambda header: header.update({"__metadata__": 5})),
    "no dtype": entry(dtype=...),
    "no shape": entry(shape=...),
    "no offsets": entry(data_offsets=...),
    "unknown dtype": entry(dtype="Q7"),
    "dtype of another size": entry(dtype="F16"),
    "dtype a number": entry(dtype=5),
    "shape a string": entry(shape="x"),
    "shape null": entry(shape=None),
    "shape negative": entry(shape=[-64]),
    "shape too large": entry(shape=[10**9]),
    "offsets swapped": entry(data_offsets=[256, 0]),
    "offsets negative": entry(data_offsets=[-256, 0]),
    "offsets of strings": entry(data_offsets=["a", "b"]),
    "one offset": entry(data_offsets=[0]),
    "offsets past the end": entry(data_offsets=[10**15, 10**15 + 256]),
    "offsets too close": entry(data_offsets=[0, 4]),
}


@table(DAMAGED)
def test_a_damaged_weight_file_is_refused(broken: PairPaths, case: Edit) -> None:
    case(broken.target)
    refusal(CheckpointError, lambda: load(broken.target, None))


def test_a_flipped_byte_in_a_header_is_refused_or_does_no_harm(
    broken: PairPaths, rng: np.random.Generator
) -> None:
    blob = (broken.target / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", blob[:8])
    for _ in range(40):
        at, byte = int(rng.integers(8 + size)), int(rng.integers(256))
        (broken.target / WEIGHTS).write_bytes(blob[:at] + bytes([byte]) + blob[at + 1 :])
        refused_or_fine(broken.target, None)


INDEX = "model.safetensors.index.json"
WRONG_INDEX: dict[str, str] = {
    "broken": "{",
    "a list": "[]",
    "no weight_map": "{}",
    "weight_map a list": '{"weight_map": ["model.safetensors"]}',
    "weight_map of numbers": '{"weight_map": {"model.norm.weight": 5}}',
    "weight_map empty": '{"weight_map": {}}',
    "a shard that is missing": '{"weight_map": {"model.norm.weight": "model-00002.safetensors"}}',
    "a shard that is a folder": '{"weight_map": {"model.norm.weight": "."}}',
}


@table(WRONG_INDEX)
def test_a_wrong_index_of_shards_is_refused(broken: PairPaths, case: str) -> None:
    (broken.target / INDEX).write_text(case)
    refusal(CheckpointError, lambda: load(broken.target, None))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    from helpers.checkpoints import make_pair

    folder = make_pair("26B-A4B", tmp_path, 1, sharded=True).target
    for shard in sorted(folder.glob("*.safetensors")):
        away = shard.rename(tmp_path / shard.name)
        assert shard.name in refusal(CheckpointError, lambda: load(folder, None))
        away.rename(shard)
    shard = max(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert shard.name in refusal(CheckpointError, lambda: load(folder, None))


TENSORS = (
    "model.embed_tokens.weight",
    "model.norm.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.5.self_attn.k_norm.weight",
    "model.layers.3.router.per_expert_scale",
    "model.layers.2.experts.gate_up_proj",
    "model.layers.2.experts.down_proj",
    "model.layers.4.layer_scalar",
)
DRAFTER_TENSORS = ("model.embed_tokens.weight", "pre_projection.weight", "model.norm.weight")


@pytest.mark.parametrize("name", TENSORS)
def test_a_missing_tensor_is_named(broken: PairPaths, name: str) -> None:
    change_arrays(lambda arrays: void(ignore=arrays.pop(name)))(broken.target)
    message = refusal(CheckpointError, lambda: load(broken.target, None))
    assert name.removeprefix("model.") in message
    assert "missing" in message


@pytest.mark.parametrize("name", TENSORS)
def test_a_misshapen_tensor_is_named_with_both_shapes(broken: PairPaths, name: str) -> None:
    shapes: list[Sequence[int]] = []

    def change(arrays: dict[str, mx.array]) -> None:
        wrong = mx.concatenate([arrays[name], arrays[name][:1]])
        shapes.extend([arrays[name].shape, wrong.shape])
        arrays[name] = wrong

    change_arrays(change)(broken.target)
    message = refusal(CheckpointError, lambda: load(broken.target, None))
    assert name.removeprefix("model.") in message
    for shape in shapes:
        assert str(list(shape)) in message


@pytest.mark.parametrize("name", DRAFTER_TENSORS)
def test_a_missing_or_misshapen_tensor_of_a_drafter_is_named(broken: PairPaths, name: str) -> None:
    change_arrays(lambda arrays: arrays.update({name: arrays[name][..., :-1]}))(broken.drafter)
    message = refusal(CheckpointError, lambda: load(broken.target))
    assert name.removeprefix("model.") in message
    change_arrays(lambda arrays: void(ignore=arrays.pop(name)))(broken.drafter)
    message = refusal(CheckpointError, lambda: load(broken.target))
    assert name.removeprefix("model.") in message


@pytest.mark.parametrize("dtype", [mx.int32, mx.uint8])  # MLX reads FP8 weights as uint8
def test_integers_for_weights_are_refused(broken: PairPaths, dtype: mx.Dtype) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change_arrays(lambda arrays: arrays.update({name: arrays[name].astype(dtype)}))(broken.target)
    message = refusal(CheckpointError, lambda: load(broken.target, None))
    assert name.removeprefix("model.") in message


# Quantization


def quantized(folder: Path, block: dict[str, Any], **formats: Any) -> None:
    """Turn the checkpoint into an MLX one, with this quantization block."""

    def change(arrays: dict[str, mx.array]) -> None:
        for name in [name for name in arrays if name.endswith("_proj.weight")]:
            parts = mx.quantize(arrays[name], **{"group_size": 64, "bits": 4} | formats)
            stem = name.removesuffix("weight")
            arrays |= {
                stem + label: part
                for label, part in zip(("weight", "scales", "biases"), parts, strict=True)
            }

    change_arrays(change)(folder)
    set_values({"quantization": block})(folder)


def test_bits_for_a_quantized_checkpoint_are_refused(broken: PairPaths) -> None:
    quantized(broken.target, {"group_size": 64, "bits": 4})
    with load(broken.target, None) as engine:
        assert len(engine.generate([5], GREEDY)[0].tokens) == 6
    for bits in (4, 8):
        message = refusal(UsageError, lambda bits=bits: load(broken.target, None, bits=bits))
        assert "quantized already" in message


@pytest.mark.parametrize("bits", [4, 8])
def test_widths_that_do_not_divide_by_the_group_size_are_named(
    broken: PairPaths, bits: int
) -> None:
    def narrow(arrays: dict[str, mx.array]) -> None:
        for name in [name for name in arrays if ".mlp." in name]:
            down = "down_proj" in name
            arrays[name] = arrays[name][:, :96] if down else arrays[name][:96]

    change_arrays(narrow)(broken.target)
    set_values({"intermediate_size": 96})(broken.target)
    with load(broken.target, None) as engine:
        assert len(engine.generate([5], GREEDY)[0].tokens) == 6
    message = refusal(CheckpointError, lambda: load(broken.target, None, bits=bits))
    assert "mlp.down_proj" in message
    assert "96" in message


WRONG_BLOCKS: dict[str, dict[str, Any]] = {
    "bits of another number": {"group_size": 64, "bits": 8},
    "bits that do not exist": {"group_size": 64, "bits": 7},
    "bits as a string": {"group_size": 64, "bits": "4"},
    "another group size": {"group_size": 32, "bits": 4},
    "a group size that does not exist": {"group_size": 16, "bits": 4},
    "group size 0": {"group_size": 0, "bits": 4},
    "group size as a string": {"group_size": "64", "bits": 4},
    "an unknown mode": {"group_size": 64, "bits": 4, "mode": "x"},
    "a mode of another layout": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "an override of another number of bits": {
        "group_size": 64,
        "bits": 4,
        "model.layers.1.mlp.up_proj": {"group_size": 64, "bits": 8},
    },
}


@table(WRONG_BLOCKS)
def test_a_quantization_block_that_misfits_the_arrays_is_refused(
    broken: PairPaths, case: dict[str, Any]
) -> None:
    quantized(broken.target, case)
    refusal(CheckpointError, lambda: load(broken.target, None))


SCATTERED: dict[str, Callable[[dict[str, mx.array]], object]] = {
    "scales are missing": lambda a: a.pop("model.layers.1.mlp.up_proj.scales"),
    "biases are missing": lambda a: a.pop("model.layers.1.mlp.up_proj.biases"),
    "weight is missing": lambda a: a.pop("model.layers.1.mlp.up_proj.weight"),
    "weight is not packed": lambda a: a.update(
        {"model.layers.1.mlp.up_proj.weight": mx.zeros((128, 64))}
    ),
}


@table(SCATTERED)
def test_a_quantized_module_without_all_its_parts_is_refused(
    broken: PairPaths, case: Callable[[dict[str, mx.array]], object]
) -> None:
    quantized(broken.target, {"group_size": 64, "bits": 4})
    change_arrays(lambda arrays: void(ignore=case(arrays)))(broken.target)
    message = refusal(CheckpointError, lambda: load(broken.target, None))
    assert "layers.1.mlp.up_proj" in message


def split_experts(arrays: dict[str, mx.array], up_bits: int | None) -> None:
    """One layer's experts as MLX checkpoints keep them, gate and up in formats of their own."""
    joined = arrays.pop("model.layers.1.experts.gate_up_proj")
    stem = "model.layers.1.experts.switch_glu."
    for part, array in zip(("gate_proj", "up_proj"), mx.split(joined, 2, axis=1), strict=True):
        bits = 4 if part == "gate_proj" else up_bits
        if bits is not None:
            labels = zip(("weight", "scales", "biases"), mx.quantize(array, 64, bits), strict=True)
            arrays |= {f"{stem}{part}.{label}": value for label, value in labels}


@pytest.mark.parametrize("up_bits", [None, 8])
def test_experts_whose_gate_and_up_do_not_match_are_refused(
    broken: PairPaths, up_bits: int | None
) -> None:
    change_arrays(lambda arrays: split_experts(arrays, up_bits))(broken.target)
    set_values({"quantization": {"group_size": 64, "bits": 4}})(broken.target)
    message = refusal(CheckpointError, lambda: load(broken.target, None))
    assert "layers.1.experts" in message


# Prompts

A_MESSAGE = {"role": "user", "content": "Hi"}
WRONG_PROMPTS: dict[str, Any] = {
    "None": None,
    "a number": 5,
    "a float": 1.5,
    "a truth value": True,
    "bytes": b"Hi",
    "a byte array": bytearray(b"Hi"),
    "a set": {"Hi"},
    "a set of ids": {5, 6},
    "a dictionary": {},
    "one bare message": A_MESSAGE,
    "a generator": (word for word in ("a", "b")),
    "an iterator of ids": iter([5, 6]),
    "a numpy array": np.array([5, 6]),
    "an MLX array": mx.array([5, 6]),
    "truth values": [True, False],
    "floats": [5.0, 6.0],
    "ids and text": [5, "Hi"],
    "text and an id": ["Hi", 5],
    "ids and a message": [5, A_MESSAGE],
    "text and None": ["Hi", None],
    "a message and None": [A_MESSAGE, None],
    "lists of lists of lists": [[[5]]],
    "lists of floats": [[5.0]],
    "lists of bytes": [b"Hi"],
    "lists of truth values": [[True]],
    "ids and text in a list": [[5, "Hi"]],
    "a message without content": [{"role": "user"}],
    "a message without role": [{"content": "Hi"}],
    "a message with content of a wrong kind": [{"role": "user", "content": 5}],
    "a message with a role of a wrong kind": [{"role": 5, "content": "Hi"}],
    "tool calls of a wrong kind": [A_MESSAGE, {"role": "assistant", "tool_calls": 5}],
    "a tool call of nothing": [A_MESSAGE, {"role": "assistant", "tool_calls": [{}]}],
    "half a character": "\ud83d",
    "half a character in a message": [{"role": "user", "content": "\ud83d"}],
}


@table(WRONG_PROMPTS)
def test_a_prompt_of_a_wrong_kind_is_refused(engine: Engine, case: Any) -> None:
    refusal(UsageError, lambda: engine.generate(case, GREEDY))
    refusal(UsageError, lambda: list(engine.stream(case, GREEDY)))


EMPTY_PROMPTS: dict[str, Any] = {
    "no text": "",
    "blanks": " \n\t ",
    "no text in a list": [""],
    "no ids": [[]],
    "no ids beside some": [[5], []],
    "no text beside some": ["Hi", ""],
}


@table(EMPTY_PROMPTS)
def test_an_empty_prompt_is_refused(engine: Engine, case: Any) -> None:
    assert "empty" in refusal(UsageError, lambda: engine.generate(case, GREEDY))


@pytest.mark.parametrize("prompt", ["", " ", []])
def test_an_empty_prompt_is_not_streamed(engine: Engine, prompt: Any) -> None:
    assert "empty" in refusal(UsageError, lambda: list(engine.stream(prompt, GREEDY)))


def test_a_batch_is_not_streamed(engine: Engine) -> None:
    refusal(UsageError, lambda: list(engine.stream(["Hi", "Hi"], GREEDY)))


@pytest.mark.parametrize("token", [VOCAB, -1, 2**31, 2**70, -(2**70), np.int64(VOCAB)])
def test_an_id_outside_the_vocabulary_is_named(plain_engine: Engine, token: int) -> None:
    for prompt in ([token], [5, token, 6], [[5], [6, token]]):
        message = refusal(UsageError, lambda prompt=prompt: plain_engine.generate(prompt, GREEDY))
        assert str(token) in message
        assert str(VOCAB) in message


def test_ids_of_numpy_are_ids(plain_engine: Engine) -> None:
    expected = plain_engine.generate([5, 6], GREEDY)[0].tokens
    assert plain_engine.generate(list(np.array([5, 6])), GREEDY)[0].tokens == expected
    assert plain_engine.generate((5, 6), GREEDY)[0].tokens == expected


def test_a_prompt_longer_than_the_model_allows_is_refused(plain_engine: Engine) -> None:
    for length in (MAX_POSITIONS, MAX_POSITIONS + 1, 10 * MAX_POSITIONS):
        prompt = [5] * length
        message = refusal(UsageError, lambda prompt=prompt: plain_engine.generate(prompt, GREEDY))
        assert str(length) in message
        assert str(MAX_POSITIONS) in message
    longest = plain_engine.generate([5] * (MAX_POSITIONS - 1), GREEDY)[0]
    assert len(longest.tokens) == 1  # as much as there is room for
    assert longest.finish_reason == "length"


def test_text_needs_a_tokenizer(plain_engine: Engine) -> None:
    for prompt in ("Hi", ["Hi"], [A_MESSAGE]):
        message = refusal(UsageError, lambda prompt=prompt: plain_engine.generate(prompt, GREEDY))
        assert "tokenizer" in message
    params = SamplingParams(stop="x")
    assert "tokenizer" in refusal(UsageError, lambda: plain_engine.generate([5], params))


def test_a_broken_chat_template_is_said_in_one_line(tmp_path: Path) -> None:
    folder = shutil.copytree(DEMO, tmp_path / "model")
    for template in ("{% if %}\n{{ x }}", "{{ raise_exception('one\\ntwo') }}", "{{ 1 / 0 }}"):
        (folder / "chat_template.jinja").write_text(template)

        def use() -> None:
            with load(folder, None) as engine:
                engine.generate("Hi", GREEDY)

        with pytest.raises(MgmError) as caught:
            use()
        assert str(caught.value).isprintable(), template


# Settings

WRONG_SETTINGS: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 1.5, "5", True, 2**31, [5], float("inf")],
    "temperature": [-1, -0.1, float("nan"), float("inf"), "0", True, 1j, [1.0], 10**400],
    "top_k": [-1, 1.5, "3", True, 2**31, [3]],
    "top_p": [0, -0.1, 1.1, float("nan"), "1", True, [0.5]],
    "seed": [-1, 2**32, 1.5, "a", True, [1]],
    "stop": ["", [""], ["a", ""], 5, [5], b"a", b"", {"a"}, None, ["a", None], np.array(["a"])],
    "num_draft_tokens": [-1, 16, 1.5, "3", "none", True, None, [1], np.array([1, 2])],
    "ignore_eos": ["no", None, [True]],
    "thinking": ["no", None, 1],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG_SETTINGS.items() for value in values],
    ids=lambda value: repr(value)[:20],
)
def test_a_wrong_setting_is_refused_by_name(name: str, value: Any) -> None:
    assert name in refusal(UsageError, lambda: SamplingParams(**{name: value}))


UNUSUAL: dict[str, list[Any]] = {
    "max_tokens": [np.int64(3)],
    "temperature": [0, 1, 1e-320, 1e39, np.float32(0.5), np.float64(0.5), Fraction(1, 2)],
    "top_k": [0, 2**31 - 1, np.int32(3), np.uint8(3)],
    "top_p": [1, 1e-30, np.float32(0.5), Fraction(1, 2)],
    "seed": [0, 2**32 - 1, np.uint32(5), np.int64(5)],
    "num_draft_tokens": [0, np.int64(2)],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in UNUSUAL.items() for value in values],
    ids=lambda value: repr(value)[:20],
)
def test_an_unusual_setting_is_refused_at_once_or_works(
    engine: Engine, name: str, value: Any
) -> None:
    try:
        params = SamplingParams(**{"max_tokens": 3, "ignore_eos": True} | {name: value})
    except UsageError:
        assert not isinstance(value, int | float)
        return
    assert len(engine.generate([5], params)[0].tokens) == 3


def test_a_decimal_is_refused_at_once_or_works(engine: Engine) -> None:
    try:
        params = SamplingParams(max_tokens=3, temperature=Decimal("0.5"), ignore_eos=True)  # type: ignore[arg-type]
    except UsageError:
        return
    assert len(engine.generate([5], params)[0].tokens) == 3


@pytest.mark.parametrize(
    "params", [5, "greedy", {"temperature": 0}, [5], [None, 5], SamplingParams], ids=str
)
def test_settings_of_a_wrong_kind_are_refused(engine: Engine, params: Any) -> None:
    refusal(UsageError, lambda: engine.generate("Hi", params))
    refusal(UsageError, lambda: list(engine.stream("Hi", params)))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_settings_for_another_number_of_prompts_are_refused(engine: Engine, count: int) -> None:
    refusal(UsageError, lambda: engine.generate(["Hi", "Hello"], [GREEDY] * count))


def test_drafts_without_a_drafter_are_refused(plain_engine: Engine) -> None:
    params = SamplingParams(num_draft_tokens=3)
    message = refusal(ModelNotFoundError, lambda: plain_engine.generate([5], params))
    assert "drafter" in message
    refusal(ModelNotFoundError, lambda: plain_engine.generate([[5], [6]], [GREEDY, params]))
    assert not plain_engine.generate([5], GREEDY)[0].stats.drafted


# Afterwards


def test_an_engine_answers_as_before_after_every_wrong_request(
    engine: Engine, plain_engine: Engine
) -> None:
    before = engine.generate("What is 2 + 3?", GREEDY)[0].tokens
    batch = [one.tokens for one in plain_engine.generate([[5], [6, 7], [8]], GREEDY)]
    for prompt in (*WRONG_PROMPTS.values(), *EMPTY_PROMPTS.values()):
        with contextlib.suppress(MgmError, TypeError):
            engine.generate(prompt, GREEDY)
    assert engine.generate("What is 2 + 3?", GREEDY)[0].tokens == before
    for prompts in ([[5], [6, VOCAB], [8]], [[5], [], [8]], [[5], [6] * MAX_POSITIONS, [8]]):
        refusal(UsageError, lambda prompts=prompts: plain_engine.generate(prompts, GREEDY))
        done = plain_engine.generate([[5], [6, 7], [8]], GREEDY)
        assert [one.tokens for one in done] == batch


def test_a_closed_engine_says_so(tiny: PairPaths) -> None:
    engine = load(tiny.target)
    engine.close()
    engine.close()
    assert "closed" in refusal(MgmError, lambda: engine.generate([5], GREEDY))
    assert "closed" in refusal(MgmError, lambda: list(engine.stream([5], GREEDY)))


def test_a_model_that_cannot_be_loaded_leaves_the_others_alone(
    tiny: PairPaths, broken: PairPaths
) -> None:
    change_arrays(lambda arrays: void(ignore=arrays.pop("model.norm.weight")))(broken.target)
    with load(tiny.target) as engine:
        before = engine.generate([5, 6], GREEDY)[0].tokens
        memory = mx.get_active_memory()
        for _ in range(3):
            refusal(CheckpointError, lambda: load(broken.target))
        assert engine.generate([5, 6], GREEDY)[0].tokens == before
        assert mx.get_active_memory() <= memory + 1_000_000
