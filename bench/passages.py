"""The patterns that the benchmark's material is put together from, for each kind of text.

Written for this project; nothing in it is true, nobody in it exists. <word>, <Word> and <2-9> are
slots, see material.py. Knows nothing of tokens, nor of what a prompt asks for.
"""

from __future__ import annotations

from typing import NamedTuple


class Passage(NamedTuple):
    """How a section reads: one of the openings, then some of the sentences, in any order."""

    openings: tuple[str, ...]
    sentences: tuple[str, ...]  # a multiple of num_sentences, so that no section has one twice
    num_sentences: int = 4
    joint: str = " "


PASSAGES = {
    "chat": Passage(
        (
            "<part>. It began in <month>, when <other> from <place> asked me about it at <spot>.",
            "<part>. Last <day> I spoke with a <job> at <spot>, who knows <place> well.",
            "<part>. If I had to start in <month>, this is what I could count on.",
        ),
        (
            "I have about <5-30> hours a week for it, mostly on <day> evenings.",
            "A friend of mine, <person>, tried the same for <3-20> weeks and gave up <reason>.",
            "So far I have saved <4-90>00 dollars, and each month I can set aside <4-30>0 more.",
            "What worries me most is <worry>; last <day> it kept me awake until <2-4> o'clock.",
            "The <job> next door offered to help for <12-40> dollars an hour, but only in <month>.",
            "There is room for <3-12> people at <spot>, which I could rent by the day.",
            "I asked <3-19> people what they would do, and <other> alone told me to wait.",
            "My sister thinks that I should move to <place> first, and she may be right.",
            "I already own <2-9> boxes of <good>, though I am not sure that they are of any use.",
            "My first attempt failed <reason>, and I still owe <2-9>00 dollars for it.",
            "The course that I would like to take lasts <4-20> weeks and starts on a <day>.",
            "The doctor wants me to work <3-9> hours less a week until <month>.",
        ),
    ),
    "code": Passage(
        (
            "# Part <part>: <kind> <noun>s\n\n\n"
            "@dataclass(frozen=True)\nclass <Kind><Noun>:\n"
            '    """One <kind> <noun>, as it is entered at <spot>."""\n\n'
            "    name: str\n    <field>: float  # at most <20-900>\n    count: int = <1-12>\n\n"
            "    def total(self) -> float:\n        return self.<field> * self.count\n",
        ),
        (
            "def <kind>_<noun>s_over(\n"
            "    items: list[<Kind><Noun>], limit: float = <20-90>\n) -> list[<Kind><Noun>]:\n"
            '    """The items whose <field> is above the limit, largest first."""\n'
            "    found = [item for item in items if item.<field> > limit]\n"
            "    return sorted(found, key=lambda item: item.<field>, reverse=True)\n",
            "def read_<kind>_<noun>s(path: Path) -> list[<Kind><Noun>]:\n"
            '    """Read lines of the form `name;<field>;count`; an empty line is skipped."""\n'
            "    items = []\n    for line in path.read_text().splitlines():\n"
            "        if not line.strip():\n            continue\n"
            '        name, value, number = line.split(";")\n'
            "        items.append(<Kind><Noun>(name, float(value), int(number)))\n"
            "    return items\n",
            "def mean_<field>_of_<kind>_<noun>s(items: list[<Kind><Noun>]) -> float:\n"
            '    """Mean <field>, weighted by count. Raises ValueError for no items."""\n'
            "    number = sum(item.count for item in items)\n    if number == 0:\n"
            '        raise ValueError("no <kind> <noun>s: nothing to average")\n'
            "    return sum(item.total() for item in items) / number\n",
            "def merge_<kind>_<noun>s(\n    left: list[<Kind><Noun>], right: list[<Kind><Noun>]\n"
            ") -> dict[str, <Kind><Noun>]:\n"
            '    """By name; where both have one, the larger <field> wins."""\n'
            "    merged = {item.name: item for item in left}\n    for item in right:\n"
            "        known = merged.get(item.name)\n"
            "        if known is None or known.<field> < item.<field>:\n"
            "            merged[item.name] = item\n    return merged\n",
            "def fee_for_<kind>_<noun>s(item: <Kind><Noun>, days: int) -> float:\n"
            '    """Dollars to keep it for so many days, of which the first are free."""\n'
            "    paid = max(0, min(days, <10-30>) - <2-9>)\n"
            "    return round(paid * 0.<11-99> * item.count, 2)\n",
            "def table_of_<kind>_<noun>s(\n"
            "    items: list[<Kind><Noun>], width: int = <12-30>\n) -> str:\n"
            '    """A line for each item, names cut to the width, and the sum below."""\n'
            '    lines = [f"{item.name[:width]:<{width}} {item.total():10.2f}" for item in items]\n'
            '    lines.append(f"{sum(item.total() for item in items):{width + 11}.2f}")\n'
            '    return "\\n".join(lines)\n',
        ),
        2,
        "\n\n",
    ),
    "summarise": Passage(
        (
            "<part>. In <month> <other> counted <12-90> crates of <good> at <spot>, too few.",
            "<part>. The work on <spot> was planned for <month> and done <2-9> weeks later.",
            "<part>. The quarrel about <spot> began with <12-90> crates of <good>, never paid for.",
        ),
        (
            "The council of <place> had set aside <20-90>,000 dollars, and half of it was spent.",
            "Deliveries stopped for <3-19> days <reason>, and <person> turned customers away.",
            "The <job>, whom <person> had asked, called the plan sound but late.",
            "A vote on <day> went <20-60> to <5-19> in favor of repairing <spot> first.",
            "Visitors paid <2-15> dollars each, and on the best day <100-900> of them came.",
            "Two measures helped: a shared list, and a rule that each crate of <good> be weighed.",
            "By the end of <month> the waiting time had fallen from <30-90> to <5-25> minutes.",
            "A second warehouse is not needed, since the first stood empty for <2-9> months.",
            "Complaints about noise came from <4-40> households; <other> settled them in person.",
            "It remains open who pays for the <good> that spoiled, worth <3-40>00 dollars.",
            "Of <20-60> helpers who were trained in <place>, <5-19> stayed for a second season.",
            "The next inspection is due in <3-11> weeks, and the list of defects has <9-40> lines.",
        ),
    ),
    "extract": Passage(
        (
            "Delivery <part>: <person> brought <12-90> crates of <good> from <place> on <day>, "
            "<month> <1-28>, at <6-11>:<10-59>.",
            "Delivery <part>, <day>, <month> <1-28>: <12-90> crates of <good>, by <person>.",
        ),
        (
            "They cost <2-9>.<10-99> dollars each, and <20-90> dollars were left as a deposit.",
            "On the road <3-11> of them were damaged and went back with <other>.",
            "The <job> signed for them and asked for <4-20> more.",
            "They are stored at <spot>, shelf <1-40>, below <2-12> degrees.",
            "Invoice <1000-9999> went to <other> and is due in <10-60> days.",
            "On arrival they weighed <200-990> kilograms, <2-9> less than stated.",
            "The delivery before it was <2-9> days late <reason>.",
            "Lot <100-999> is to be used before the end of <month>.",
        ),
    ),
    "translate": Passage(
        (
            "<part>. We reached <place> on a <day> in <month>, with <weather>, and <person> met us "
            "at <spot>.",
            "<part>. After <3-9> hours on foot we saw <spot> of <place>, and above it <weather>.",
            "<part>. <Person> woke us before <4-6>, because the cart to <place> would not wait.",
        ),
        (
            "The guesthouse had <3-20> rooms and one long table, where <other> told old stories.",
            "For <2-9> dollars a <job> rowed us across the bay and sang under his breath.",
            "Nobody could say who had built <spot>, though everyone had an opinion about it.",
            "We bought <good> from a stall, paid too much, and did not regret it.",
            "The road to the next village was closed <reason>, so we walked along the shore.",
            "In the evening <20-90> lanterns were lit, one for each family that had gone to sea.",
            "My notebook got wet, and what I wrote on <day> can hardly be read any more.",
            "A child asked where we came from, and laughed when <person> tried to explain.",
            "Breakfast was bread with salt, and a pot of tea that had to do for <4-9> of us.",
            "Before we left, <other> gave us a key and would not say what it opens.",
            "The clock at <spot> is <5-40> minutes slow, and the whole town lives by it.",
            "I have never seen so many cats, nor so few people who would admit to feeding them.",
        ),
    ),
    "reason": Passage(
        ("Depot <part> in <place>, run by <person>, starts with <300-900> crates of <good>.",),
        (
            "Every morning <10-40> crates go out, except on a <day>.",
            "Every evening a cart brings <2-9> crates back.",
            "A crate weighs <8-25> kilograms, and the cart carries at most <200-600>.",
            "On day <2-6> a buyer takes one crate in <3-8> of those that are left.",
            "On day <4-9> <other> adds <20-60> crates if fewer than <100-250> remain by then.",
            "One crate in every <8-30> that come in is damaged and counts as lost.",
            "A crate sells for <3-19> dollars, and to keep one costs <5-40> cents a day.",
            "The depot may never hold fewer than <20-80> crates; at that point it closes.",
            "A <job> who checks the stock needs <2-6> minutes for <10-30> crates.",
            "From day <5-8> on, <3-15> crates more leave every morning.",
            "Whoever takes more than <60-200> crates at once pays <5-20> percent less.",
            "On a <day> the cart comes twice.",
        ),
    ),
    "creative": Passage(
        (
            "<part>. On a <day> in <month>, with <weather> outside, <person> came to <spot> with a "
            "letter in one glove.",
            "<part>. It was <weather> that woke <person>, or so it was told at <spot> afterwards.",
            "<part>. Nobody had used the back door of <spot> since <month>, and yet it was warm.",
        ),
        (
            "<Other> was there before, as always, counting <good> that nobody had ordered.",
            '"You are <5-40> minutes late," said <other>, "and <2-9> years too early."',
            "Behind the wall something moved, slowly, like a <job> looking for a dropped coin.",
            "There were <12-90> steps, and on every one of them somebody had written a name.",
            "In <place> they say that a door left open on a <day> is an invitation.",
            "The lamp went out <2-6> times, and each time the room was a little larger.",
            "Neither of them spoke of the summer when <spot> had burned.",
            "A map lay on the table, and the river on it had changed its course since <month>.",
            '"I only came for the key," <person> said, and both knew that it was not true.',
            "Outside, the bell rang <3-13> times, though it was barely noon.",
            "The last page was missing, and <other> smiled as if that were the best of it.",
            "There was a smell of <good>, and of something older than <good>.",
        ),
    ),
    "notes": Passage(
        ("Note <part>: <person> looks after <spot> in <place> from <month> on.",),
        (
            "The key hangs behind the <good>, on hook <2-40>.",
            "On <day> it opens at <6-9>:<10-59> and closes <4-11> hours later.",
            "Call <other>, the <job>, if anything breaks; the number ends in <100-999>.",
            "The last repair took <2-19> days and cost <2-90>0 dollars.",
            "There are <3-40> chairs, <2-9> tables, and <12-60> crates of <good>.",
            "It was closed for <2-9> weeks <reason>.",
            "With <weather>, leave the side door shut and the shutters down.",
            "What is found there goes to <other>, who keeps it for <10-60> days.",
        ),
    ),
}

# What a user asks on the way, and what the answer was.
EXCHANGES = (
    ("Who opens <spot>?", "<Other> does, on <day> at <6-9>."),
    ("How many crates of <good> do we need?", "<12-90>; order <3-9> more to be safe."),
    ("What if we get <weather>?", "Then move it all to <spot>, by <day>."),
    ("Is <4-30>00 dollars enough for <good>?", "Barely: a crate costs <10-90> dollars."),
    ("Can <person> come in <month>?", "Yes, on a <day>; ask <other> for the other days."),
    ("Why did it fail at <spot>?", "It had to stop <reason>, and <12-90> guests went home."),
    ("How do people get there from <place>?", "By cart, every <10-50> minutes until <6-9>."),
    ("Whom do we ask about <spot>?", "The <job>, <other>: always there on <day>."),
    (
        "What is still missing at <spot>?",
        "Somebody to count the <good>, and <2-9> lamps for the way.",
    ),
    ("When does it end on <day>?", "At <7-11>; <other> needs <20-90> minutes to clear up."),
)
