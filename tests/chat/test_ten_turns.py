"""Ten turns of a chat with the demo pair reuse the KV cache, and give the answers of a new one."""

import io

import pytest

from mlx_gemma_mtp import SamplingParams, load
from mlx_gemma_mtp.chat.chat import Chat
from mlx_gemma_mtp.chat.loading import Loaded
from mlx_gemma_mtp.chat.screen import Screen
from mlx_gemma_mtp.chat.transcript import Conversation, Models, Transcript

pytestmark = pytest.mark.slow


def test_turns_with_thoughts_prefill_only_what_is_new_and_answer_as_from_scratch() -> None:
    params = SamplingParams(temperature=0, max_tokens=64, num_draft_tokens=2, thinking=True)
    with load("demo") as engine:
        assert 0 < engine.longest_context() <= engine.config.max_position_embeddings
        loaded, screen = Loaded(engine, Models(), 4096), Screen(io.BytesIO(), io.StringIO())
        chat = Chat(loaded, Transcript(Conversation()), params, screen)
        before = 0
        for number in range(10):
            chat.ask(f"What is {17 + number} + 25?")
            assert chat.last
            assert chat.last.reused_tokens >= before  # all but the last answer and the new message
            before = chat.last.prompt_tokens
            if number == 0:
                assert chat.transcript.answer["reasoning"]
            if number % 3 == 0:  # prefilling the whole conversation ten times is slow on a CPU
                fresh = engine.generate(chat.transcript.prompt[:-1], params)[0].message
                assert chat.transcript.answer == fresh
        assert before > 200
