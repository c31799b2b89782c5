"""What prompts start with is prefilled once, within a budget, and outputs stay as they are."""

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest

from helpers.fake_target import CONFIG, WINDOW, output
from helpers.prefixes import LEAST, LIMITS, MUCH, OPENING, TURN, Ids, ask, caching, num_read, words
from helpers.stepped import Event, Stepped
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.session import Session

POSITION = 2 * 4 * 2  # bytes in one layer: keys and values, float32, head_dim 2


def held(stepped: Stepped) -> int:
    """Bytes of the prefixes."""
    return stepped.scheduler.status.prefix_bytes


@pytest.mark.parametrize("thoughts", [False, True])
def test_a_turn_prefills_what_is_new_and_at_most_one_answer(
    rng: np.random.Generator, thoughts: bool
) -> None:
    """thoughts: the template leaves a part of the answer out of the next prompt."""
    stepped = caching()
    history, answer = [TURN, *words(rng, 300)], 0
    for turn in range(30):
        question = [TURN, *words(rng, int(rng.integers(1, 9)))]
        prompt = [*history, *question, *OPENING]
        done = ask(stepped, prompt, int(rng.integers(1, 12)), int(rng.integers(4)))
        new = len(question) + len(OPENING)
        if turn:
            assert num_read(done) <= new + 1 + (answer + len(OPENING) if thoughts else 0)
        answer = len(done.tokens)
        history = [*prompt, *done.tokens[answer // 2 if thoughts else 0 :]]
    status = stepped.scheduler.status
    assert status.prefix_hits == 29
    assert status.prefix_tokens > 29 * 300
    # Each token once, but for dropped thoughts, and a window for a few ends.
    assert held(stepped) <= POSITION * ((2 if thoughts else 1) * len(history) + 8 * WINDOW + 100)


def test_results_of_tools_in_one_turn_of_the_model_are_read_once(rng: np.random.Generator) -> None:
    """Though the template writes the calls in another way than the model did."""
    stepped, written, result = caching(), 4, Ids()
    prompt = [TURN, *words(rng, 100), TURN, *words(rng, 20), *OPENING]
    for turn in range(8):
        done = ask(stepped, prompt, 9, 3)
        if turn:
            assert num_read(done) <= written + len(result) + len(OPENING)
        result = words(rng, 60)
        prompt = [*prompt, *words(rng, written), *result]


def test_instructions_are_kept_however_short_the_first_question_is(
    rng: np.random.Generator,
) -> None:
    stepped, system = caching(), [TURN, *words(rng, 100)]
    for _ in range(2):
        done = ask(stepped, [*system, TURN, *words(rng, 1), *OPENING])
    assert done.stats.reused_tokens == len(system)


@pytest.mark.parametrize("length", [LEAST + 1, WINDOW, 41])
def test_a_prompt_may_differ_from_earlier_ones_at_every_point(
    rng: np.random.Generator, length: int
) -> None:
    stepped = caching()
    first = words(rng, length)
    ask(stepped, first)
    for at in range(length):
        ask(stepped, [*first[:at], *words(rng, 1 + 29 * (at % 2))], 3)
    before = stepped.scheduler.status.prefix_tokens
    for at in range(length):
        ask(stepped, [*first[:at], *words(rng, 3)], 3)
    # Where prompts have parted before, the next ones continue.
    if length > 3 * LEAST:
        assert stepped.scheduler.status.prefix_tokens - before > length * (length - 3 * LEAST) / 3


def test_a_prompt_that_changes_within_its_instructions_is_read_from_there_the_third_time(
    rng: np.random.Generator,
) -> None:
    """As with a date in a system prompt."""
    stepped = caching()
    start, rest = [TURN, *words(rng, 200)], words(rng, 100)
    read = [num_read(ask(stepped, [*start, 3 + day, *rest, *OPENING])) for day in range(4)]
    assert read[:2] == [len(start) + 104] * 2
    assert read[2:] == [104] * 2


@pytest.mark.parametrize("most", [1000, 4000, MUCH])
@pytest.mark.parametrize("max_batch", [1, 4])
def test_outputs_stay_the_same_however_conversations_mix_and_little_is_kept(
    rng: np.random.Generator, most: int, max_batch: int
) -> None:
    stepped = caching(most, max_batch=max_batch)
    systems = [[TURN, *words(rng, int(rng.integers(5, 90)))] for _ in range(3)]
    talks = [list(systems[n % 3]) for n in range(6)]
    requests = dict[int, Request]()
    for _ in range(60):
        n = int(rng.integers(len(talks)))
        if n in requests:
            done = requests.pop(n)
            if rng.random() < 0.2:
                done.generation.cancel()
            while not done.ended:
                stepped.step()
            assert done.tokens == output(done.ids, len(done.tokens))
            talks[n] = [*done.ids, *done.tokens[int(rng.integers(len(done.tokens) + 1)) :]]
            if len(talks[n]) > 500:
                talks[n] = list(systems[n % 3])
        else:
            question = [TURN, *words(rng, int(rng.integers(1, 40)))]
            requests[n] = stepped.submit(
                [*talks[n], *question, *OPENING], int(rng.integers(1, 20)), int(rng.integers(6))
            )
            stepped.step(int(rng.integers(3)))
        assert held(stepped) <= most
    stepped.finish()


def test_of_a_tight_budget_what_was_not_used_for_longest_goes_first(
    rng: np.random.Generator,
) -> None:
    prompts = [words(rng, 100) for _ in range(5)]
    one = POSITION * (100 + 5 + 2 * WINDOW)
    stepped = caching(3 * one)
    for prompt in prompts[:3]:
        ask(stepped, prompt)
    ask(stepped, [*prompts[0], 7])  # used again
    ask(stepped, prompts[3])
    reused = [stepped.scheduler._prefixes.find([*one, 7, 7]) is not None for one in prompts]
    assert reused == [True, False, True, True, False]


def test_bytes_stay_within_the_budget_and_all_come_back(rng: np.random.Generator) -> None:
    stepped, most = caching(20_000), list[int]()
    start = mx.get_active_memory()
    for number in range(1000):
        prompt = [TURN, *words(rng, int(rng.integers(1, 60))), *OPENING]
        stepped.submit(prompt, int(rng.integers(1, 4)))
        if number % 4 == 3:
            stepped.finish()
            most.append(held(stepped))
    assert max(most) <= 20_000
    assert most[-1] > 15_000
    tree = sum(part.nbytes for part in stepped.scheduler._prefixes._root.after())
    assert held(stepped) == tree
    assert mx.get_active_memory() - start < 3 * 20_000  # small arrays take a page's share each
    stepped.scheduler.close()
    assert held(stepped) == 0


def test_a_request_that_runs_out_of_memory_gets_that_of_the_prefixes(
    rng: np.random.Generator,
) -> None:
    stepped = caching()
    ask(stepped, words(rng, 100))

    def fail(event: Event) -> None:
        if event.what == "chunk" and held(stepped):
            raise RuntimeError("[malloc] Unable to allocate 9 bytes.")

    stepped.then = fail
    stepped.finish(stepped.submit(words(rng, 30)))
    assert held(stepped) > 0


def test_a_session_wins_if_it_has_more_and_else_the_prefix_does(rng: np.random.Generator) -> None:
    stepped, session = caching(), Session(CONFIG, "fake", LIMITS)
    system = [TURN, *words(rng, 100)]

    def turn(prompt: Ids) -> Request:
        request = stepped.submit(prompt, 5, 3, session=session)
        stepped.finish(request)
        return request

    ask(stepped, [*system, TURN, *words(rng, 9), *OPENING])
    first = turn([*system, TURN, *words(rng, 20), *OPENING])
    assert first.stats.reused_tokens == len(system)
    second = turn([*first.ids, *first.tokens, TURN, *words(rng, 20), *OPENING])
    assert second.stats.reused_tokens == len(first.ids) + 4
    # The prefixes have more of this one than the session.
    other = ask(stepped, [*system, TURN, *words(rng, 50), *OPENING])
    third = turn([*other.ids, *other.tokens, TURN, *words(rng, 20), *OPENING])
    assert third.stats.reused_tokens == len(other.ids) + 4
    fourth = turn([*third.ids, *third.tokens, 5])
    assert fourth.stats.reused_tokens == len(third.ids) + 4


def test_the_windows_of_a_conversation_stay_few(rng: np.random.Generator) -> None:
    stepped, history, sizes = caching(), [TURN, *words(rng, 100)], list[int]()
    for _ in range(20):
        prompt = [*history, TURN, *words(rng, 20), *OPENING]
        history = [*prompt, *ask(stepped, prompt, 9).tokens]
        sizes.append(held(stepped) - POSITION * len(history))
    assert max(abs(after - before) for before, after in pairwise(sizes[3:])) < POSITION * WINDOW
