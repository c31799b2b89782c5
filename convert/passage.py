"""The text that quality is measured on: prose, answers to questions, and small exercises.

Written for this project. Knows how it becomes tokens, and nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.tokenizer import Text

BOS = 2  # every Gemma 4 tokenizer's; without it the first words of a text are noise
WINDOW = 512  # tokens; a longer text is cut into texts of this length, each with its own beginning


class Document(NamedTuple):
    """Some tokens that are read together, from position 0."""

    part: str
    tokens: list[int]
    first: int  # the first token that counts; those before it are given


def shipped(text: Text) -> list[Document]:
    """The text that ships with this package: prose counts whole, answers after their questions."""
    documents = [document for piece in PROSE for document in prose(text, piece)]
    for part, asked in (("answers", ANSWERS), ("exercises", EXERCISES)):
        for question, answer in asked:
            given = text.prompt(question)
            said = text.encode(f"{answer}<turn|>")
            documents.append(Document(part, [*given, *said], len(given)))
    return documents


def prose(text: Text, content: str, part: str = "prose") -> list[Document]:
    """A plain text as documents of at most WINDOW tokens."""
    tokens = text.encode(content.strip())
    size = WINDOW - 1
    cuts = [tokens[at : at + size] for at in range(0, len(tokens), size)]
    return [Document(part, [BOS, *cut], 1) for cut in cuts]


def questions() -> list[str]:
    """The shipped text's questions, as prompts for a drafter's acceptance."""
    return [question for question, _ in (*ANSWERS, *EXERCISES)]


def read_text(text: Text, path: Path) -> list[Document]:
    """A file as prose, under its name. Raises UsageError."""
    documents = prose(text, _content(path), path.name)
    if not documents:
        raise UsageError(f"{path} is empty: there is nothing to measure on")
    return documents


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that hold anything. Raises UsageError."""
    lines = [line for line in _content(path).splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{path} is empty: give a prompt on each line")
    return lines


def at_most(documents: Sequence[Document], num_tokens: int) -> list[Document]:
    """The first documents of each part, as far as so many tokens count."""
    left = {document.part: num_tokens for document in documents}
    kept = []
    for document in documents:
        end = min(len(document.tokens), document.first + left[document.part])
        if end > document.first:
            kept.append(document._replace(tokens=document.tokens[:end]))
            left[document.part] -= end - document.first
    return kept


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as text ({error})") from None


PROSE = (
    """
The tide comes in twice a day because the earth turns under two bulges of water. One of them faces
the moon, which pulls the near side of the sea a little harder than the ground below it. The other
is on the far side, where the moon pulls the water a little less than the ground. The sun does the
same with less than half the strength. When both stand in one line, at new and at full moon, their
pulls add up and the water rises higher than usual; a week later they stand at a right angle, and
the difference between high and low water is small. A harbour does not follow the moon at once. The
shape of the coast, the depth of the sea and the time that a wave needs to run round a basin decide
when the water arrives, so every port has its own table, and sailors trust the table, not the sky.
""",
    """
Marta closed the shop at six and counted the coins twice. Eleven short again. She did not think
of thieves; she thought of Jonas, who was nine, and of the red kite in the window across the street.
"You could have asked," she said when he came down for supper. He looked at his plate for a long
time. "You would have said no." That was true, and she was too tired to pretend it was not. So they
made an agreement, written on the back of an invoice: one hour of sweeping was worth one coin, and
the kite was worth eleven. It took him until the second week of October, when the wind was finally
strong enough, and by then he had noticed that the string was too short. He sold the kite to a
younger boy for fourteen, and swept on.
""",
    """
To sort a list by merging, cut it in the middle, sort each half, and put the halves together again.
The last step is the only one that does any work: of the two first elements, take the smaller one,
and repeat until both halves are empty.

```python
def merge_sort(items: list[int]) -> list[int]:
    if len(items) < 2:
        return items
    middle = len(items) // 2
    left, right = merge_sort(items[:middle]), merge_sort(items[middle:])
    merged = []
    while left and right:
        merged.append(left.pop(0) if left[0] <= right[0] else right.pop(0))
    return merged + left + right
```

A list of n elements can be halved about log2(n) times, and each level touches all n elements once,
so the time grows as n log n. Taking from the front of a Python list moves all that follows, which
costs more than it seems; two indices that walk through the halves avoid it.
""",
    """
Dear Ms. Okafor,

Thank you for your letter of 14 March about the invoice for the repair of the lift. You are right:
the second visit was a consequence of the first, and our contract says that such visits are free.
I have asked our accounts department to cancel the amount of 248.50 euros. A corrected invoice is
attached. Should you have paid already, the money will be returned within ten working days.

The lift itself was inspected on Tuesday. The brake is in order, but the cable shows wear after
nineteen years, and I would advise you to have it replaced before the winter. Our technician can
come on any morning in the first week of April; please tell us which day suits the residents.

Yours sincerely,
Daniel Brandt
""",
    """
La boulangère se lève à trois heures. Elle pèse la farine, ajoute l'eau, le sel et un peu de levain,
puis elle laisse la pâte tranquille. Le temps fait le reste : au bout de quatre heures, le volume a
presque doublé. Wer es eilig hat, nimmt mehr Hefe, doch der Geschmack leidet darunter, denn die
Säure und das Aroma entstehen langsam. El horno debe estar muy caliente, a unos 240 grados, y con
algo de vapor, para que la corteza se abra bien y quede crujiente. Après quarante minutes, on
frappe le dessous du pain : s'il sonne creux, il est cuit.
""",
    """
# Release 2.4

| Platform | Minimum version | Size |
|---|---|---|
| macOS | 14.0 | 38 MB |
| Linux (glibc 2.31) | any | 41 MB |
| Windows | 10 | 44 MB |

- The index is now built in the background; searching works from the first second.
- `--since` accepts dates such as `2024-02-29` as well as durations such as `36h`.
- Fixed: a file whose name ends in a space was reported as missing.

```json
{"name": "finder", "threads": 4, "ignore": ["*.tmp", ".git/"], "limits": {"memory_mb": 512}}
```
""",
    """
The probability that at least two of n people share a birthday is easiest to find from its
opposite. The second person misses the first one's day with probability 364/365, the third misses
both with 363/365, and so on. Multiplying these factors gives the probability that all days are
different; for n = 23 the product is about 0.493, so two share a day with probability 0.507. It
feels too large because one thinks of one's own birthday. But 23 people form 23 * 22 / 2 = 253
pairs, and each pair is a chance of 1/365. Real birthdays are not spread evenly over the year, which
makes a shared day slightly more likely still.
""",
)

ANSWERS = (
    (
        "Why is the sky blue?",
        "Sunlight contains all colors. Air molecules scatter short wavelengths, such as blue, much "
        "more strongly than long ones, such as red. So blue light reaches your eyes from all over "
        "the sky, while the direct light of the sun looks slightly yellow. At sunset the light "
        "passes through more air, most of the blue is scattered away, and the sky turns red.",
    ),
    (
        "Write a Python function that returns the n-th Fibonacci number.",
        "```python\ndef fibonacci(n: int) -> int:\n    a, b = 0, 1\n    for _ in range(n):\n"
        "        a, b = b, a + b\n    return a\n```\n\nIt starts with `fibonacci(0) == 0`, and "
        "takes n steps and constant memory.",
    ),
    (
        "What are three things to check before buying a used bicycle?",
        "1. **Frame:** look for cracks and dents, above all near the welds.\n"
        "2. **Drivetrain:** a worn chain or worn sprockets slip under load and are expensive to "
        "replace.\n"
        "3. **Brakes and wheels:** the wheels should run straight, and the brakes should stop the "
        "bike without squealing.",
    ),
    (
        "Translate into German: The train to Hamburg leaves from platform seven.",
        "Der Zug nach Hamburg fährt von Gleis sieben ab.",
    ),
    (
        "Summarize in one sentence: The meeting was moved from Monday to Thursday because the new "
        "figures will not be ready before Wednesday evening.",
        "The meeting will take place on Thursday instead of Monday, since the new figures will not "
        "be ready until Wednesday evening.",
    ),
    (
        "A train travels 180 km in 2 hours and 15 minutes. What is its average speed?",
        "2 hours and 15 minutes are 2.25 hours. The average speed is 180 km / 2.25 h = 80 km/h.",
    ),
    (
        "Who wrote Pride and Prejudice, and when was it published?",
        "Jane Austen wrote *Pride and Prejudice*. It was published in 1813.",
    ),
    (
        "Explain recursion to a ten-year-old.",
        "Imagine that you stand in a long queue and want to know your place in it. You ask the "
        "person in front of you, who asks the next one, and so on, until the first person says: "
        '"I am number one." Then the answers travel back, each person adding one. Recursion works '
        "like that: a problem is handed on as a slightly smaller one until it is so small that the "
        "answer is obvious.",
    ),
)

EXERCISES = (
    ("What is 17 + 25?", "17 + 25 = 42"),
    ("How much is 208 - 64?", "208 - 64 = 144"),
    ("What is 7 * 8?", "7 * 8 = 56"),
    ("Count up to 12.", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12"),
    ("Please sort these words: pear, apple, plum, fig", "apple, fig, pear, plum"),
    ("How do you spell river?", "r-i-v-e-r"),
    ('Write "stone" backwards.', "enots"),
    (
        "List all days of the week.",
        "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    ),
    ("If today is Friday, what day is tomorrow?", "Tomorrow is Saturday."),
    ("How long is May?", "May has 31 days."),
    ("What is 1700 cents in euros?", "1700 cents = 17 euros"),
    (
        "Convert to JSON: Tina has 45 plums.",
        '{"name": "Tina", "item": "plum", "count": 45}',
    ),
    (
        "Max found 31 apples on Monday and 24 on Tuesday. How many apples does Max have now?",
        "31 + 24 = 55",
    ),
    (
        "Write the multiplication table of 3 up to 10.",
        "3 * 1 = 3\n3 * 2 = 6\n3 * 3 = 9\n3 * 4 = 12\n3 * 5 = 15\n3 * 6 = 18\n3 * 7 = 21\n"
        "3 * 8 = 24\n3 * 9 = 27\n3 * 10 = 30",
    ),
    ("Name the eighth month of the year.", "August is the eighth month of the year."),
    ('What is the last letter of "lamp"?', "lamp ends with p."),
)
