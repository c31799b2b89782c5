"""What people ask for in each of the benchmark's tasks, and say after the answer.

Long answers are asked for, so that a model goes on for some hundreds of tokens. <word> is a slot,
see material.py. Knows nothing of tokens, nor of the material that a request is about.
"""

from __future__ import annotations

from typing import NamedTuple


class Request(NamedTuple):
    """What is asked for in a task, in patterns; the material follows the words."""

    words: str
    follow_up: str
    subjects: tuple[str, ...]
    end: str = ""  # what stands behind the material
    opening: tuple[str, str] | None = None  # the exchange that a conversation begins with


REQUESTS = {
    "chat": Request(
        "I am <person> from <place>, and I think about <subject>. Advise me in at least 400 words: "
        "steps, costs, risks, and what you would do in my place. Here is how things stand.\n\n",
        "Which of these steps should I take this week, and why?",
        (
            "leaving nursing to grow vegetables",
            "learning to sail at fifty",
            "opening a small bakery",
            "teaching my children at home for a year",
            "walking across the country alone",
            "turning our barn into a workshop",
            "studying law in the evenings",
            "giving up my car",
        ),
    ),
    "code": Request(
        "<person> in <place> began a Python module for <subject>. Finish what breaks off, add a "
        "command line, and write pytest tests for every function. Reply with all of the code.\n\n"
        "```python\nfrom dataclasses import dataclass\nfrom pathlib import Path\n\n\n",
        "Now add a function that writes everything to a CSV file, with a test.",
        (
            "lost property",
            "a ferry's cargo",
            "tool rental",
            "a seed bank",
            "museum loans",
            "mail sorting",
            "river levels",
            "a school kitchen",
        ),
        end="\n```",
    ),
    "summarise": Request(
        "Summarize this report on <subject> in <place> for <person>, in at least 300 words: first "
        "the outcome, then figures, disputes, and what is still open.\n\n",
        "Shorten that to three sentences for the newspaper.",
        (
            "the harbor repairs",
            "a year of night markets",
            "the new waterworks",
            "the school gardens",
            "the ferry timetable",
            "the flood of last spring",
            "the public library",
            "the winter stores",
        ),
    ),
    "extract": Request(
        "Extract <subject> from these notes by <person> in <place>: a JSON array with one object "
        "per delivery and twelve keys each, null where unknown, and a summary of 200 words as "
        "JSON, too.\n\n",
        "Add a key with the total price to each object, and show the JSON again.",
        (
            "all deliveries",
            "every date and deadline",
            "people and their roles",
            "all sums of money",
            "quantities and losses",
            "storage and shelf life",
            "invoices and lots",
            "everything measurable",
        ),
    ),
    "translate": Request(
        "Translate these pages from <person>'s diary about <place> into <subject>, sentence by "
        "sentence, in full. Then explain ten difficult words in 200 words.\n\n",
        "Now put the first two sentences into the present tense.",
        (
            "German",
            "French",
            "Spanish",
            "Italian",
            "Portuguese",
            "Dutch",
            "Polish",
            "Swedish",
        ),
    ),
    "reason": Request(
        "<person> of <place> must find out <subject>. Work it out from these facts step by step, "
        "in at least 300 words, check the result, and say what is missing.\n\n",
        "How does the result change if every cart comes one day later?",
        (
            "which depot runs out first",
            "how many crates are left after day 5",
            "which depot earns most in ten days",
            "how heavy the stock is on day 4",
            "how many carts are needed in a week",
            "how many crates are lost by day 9",
            "what the stock costs until day 8",
            "which depot should close",
        ),
    ),
    "creative": Request(
        "Go on with this story that <person> from <place> began, in the voice of <subject>. Write "
        "at least 500 words, with dialogue, and end on a surprise.\n\n",
        "Tell the last scene again, as the other one saw it.",
        (
            "a dry ghost story",
            "a sea tale",
            "a letter to a friend",
            "a detective's report",
            "a fairy tale for grown people",
            "a radio play",
            "an old man at a bar",
            "a diary",
        ),
    ),
    "multi-turn": Request(
        "Now write the whole plan, hour by hour, at least 400 words, with duties for each of us. "
        "My notes: ",
        "What do we drop if it has to be an hour shorter?",
        (
            "a lantern walk",
            "a boat race",
            "an exhibition of old maps",
            "a harvest dinner",
            "an open day",
            "a night of short plays",
            "a repair fair",
            "a welcome for new neighbors",
        ),
        opening=(
            "I am <person>; we prepare <subject> in <place>. Will you help?",
            "Gladly. Ask me one thing at a time.",
        ),
    ),
}
# The exchange that fills a depth.
EARLIER = ("Keep these notes in mind for later.\n\n", "Noted: I will keep them in mind.")
