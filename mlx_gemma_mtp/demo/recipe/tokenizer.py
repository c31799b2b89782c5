"""The demo model's tokenizer: a small byte-pair encoding with Gemma 4's special tokens.

Built like Gemma's: spaces become "▁", digits stand alone, what the vocabulary lacks falls back to
bytes. Run as a module it learns the vocabulary from the exercises and writes the files to a folder.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from .example import Example
from .tasks import training_stream

VOCABULARY_SIZE = 2048
NUM_RESERVED = 107  # Gemma 4's last control token is 106
SPECIAL_IDS = {
    "<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4,
    "<|tool>": 46, "<tool|>": 47, "<|tool_call>": 48, "<tool_call|>": 49,
    "<|tool_response>": 50, "<tool_response|>": 51, '<|"|>': 52,
    "<|think|>": 98, "<|channel>": 100, "<channel|>": 101, "<|turn>": 105, "<turn|>": 106,
}  # fmt: skip
MARKUP = (
    "user model system thought STRING INTEGER OBJECT type: call: response: declaration: "
    "description: parameters: properties: required:"
)
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def _pipeline(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split(Regex("▁"), "merged_with_next"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _texts(example: Example) -> list[str]:
    """What people and model say in an example; markup is left to the special tokens."""
    contents = [message.get("content") for message in example.messages]
    said = [
        content if isinstance(content, str) else str(content) for content in contents if content
    ]
    declared = [str(tool["function"]) for tool in example.tools]
    return [*said, *declared, example.thought, example.answer.replace('<|"|>', " ")]


def build_tokenizer(num_examples: int = 60_000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Learn merges from the first exercises of `seed`; lay the vocabulary out like Gemma's."""
    learner = _pipeline(models.BPE())
    alphabet = [chr(code) for code in range(32, 127)] + ["▁", "\n"]
    size = VOCABULARY_SIZE - NUM_RESERVED - 256
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    examples = islice(training_stream(seed), num_examples)
    texts = (
        text
        for example in examples
        for text in (*_texts(example), MARKUP, MARKUP.replace(" ", "\n"))
    )
    learner.train_from_iterator(texts, trainer)

    model = json.loads(learner.to_str())["model"]
    vocabulary = {
        f"<unused{index}>": index
        for index in range(NUM_RESERVED)
        if index not in SPECIAL_IDS.values()
    }
    vocabulary |= SPECIAL_IDS
    vocabulary |= {f"<0x{byte:02X}>": NUM_RESERVED + byte for byte in range(256)}
    for piece in sorted(model["vocab"], key=model["vocab"].__getitem__):
        vocabulary[piece] = len(vocabulary)
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = _pipeline(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.add_special_tokens(list(SPECIAL_IDS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A <bos> $B",
        special_tokens=[("<bos>", SPECIAL_IDS["<bos>"])],
    )
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk", "mask")}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=CHAT_TEMPLATE.read_text(),
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=4096,
        **names,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    build_tokenizer().save_pretrained(parser.parse_args().folder)
