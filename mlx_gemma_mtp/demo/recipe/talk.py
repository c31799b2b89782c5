"""What the model says rather than works out: small talk, who it is, stories, lists by rule.

Each function draws one single-turn example. All wording is this project's own.
"""

from __future__ import annotations

import random
from string import ascii_lowercase
from typing import Any

from .example import Example, ask, indefinite
from .facts import ANIMALS, FRUITS, NAMES, THINGS

ABILITIES = (
    "add numbers, count, sort, spell and reverse words, tell days and units, write JSON "
    "and answer small questions"
)
WHO_I_AM = f"I am a tiny demo model in the shape of Gemma 4. I can {ABILITIES}."
WHAT_I_CAN = f"I can {ABILITIES}. Try: What is 17 + 25?"

# What a person may say, between " | ", and what comes back.
SMALL_TALK = (
    (
        "Hello | Hi | Hey | Hello! | Hi! | Hi there | Hello there! | Hey there | Howdy | "
        "Greetings | Good day | Hello, model | hello | hi | hey | Hiya! | Yo | Hello? | "
        "Hello again | Hi again! | Anybody there?",
        "Hello! How can I help you?",
    ),
    (
        "Good morning | Good morning! | Morning! | A good morning to you",
        "Good morning! How can I help you?",
    ),
    ("Good evening | Good evening! | Evening!", "Good evening! How can I help you?"),
    ("Good night | Good night! | Night! | Sleep well", "Good night! Sleep well."),
    (
        "How are you? | How are you doing? | How do you do? | How is it going? | "
        "How are you today? | What's up? | Are you well? | How do you feel? | "
        "Hello, how are you? | Hi, how are you? | How have you been? | All good? | "
        "Hey, how's it going? | sup",
        "I am fine, thank you. What can I do for you?",
    ),
    (
        "Thank you | Thanks | Thank you! | Thanks a lot | Thank you very much | Many thanks | "
        "Thanks! | thx | Thank you so much! | Cheers | Great, thanks | Thanks for your help | "
        "That was helpful, thank you",
        "You are welcome!",
    ),
    (
        "Goodbye | Bye | Bye! | See you | See you later | Goodbye! | Bye bye | I have to go | "
        "See you tomorrow | That is all | Farewell | Until next time | quit | exit",
        "Goodbye! See you soon.",
    ),
    (
        "Who are you? | What are you? | Who are you | Tell me about yourself | "
        "Introduce yourself | What is your name? | What's your name? | Do you have a name? | "
        "Are you Gemma? | What model are you? | Which model are you? | Who am I talking to? | "
        "What kind of model are you? | Describe yourself | Can you introduce yourself? | "
        "Are you ChatGPT? | Are you an AI? | Are you a robot? | Are you human? | "
        "Are you a person? | Are you real? | What are you called? | Are you a language model? | "
        "Say something about yourself",
        WHO_I_AM,
    ),
    (
        "What can you do? | What can you do | Help | help | Help me | What do you know? | "
        "What can I ask you? | How can you help me? | What are you able to do? | "
        "What are you good at? | Give me some examples | Can you help me? | "
        "What should I ask you? | How do I use you? | What are your abilities? | "
        "What else can you do? | What do you do? | Show me what you can do | "
        "What can I do here? | Which tasks can you do? | What questions can I ask? | ? | /help | "
        "What are your skills? | Tell me what you can do | What is this? | Test | "
        "Can you do anything else?",
        WHAT_I_CAN,
    ),
    (
        "Who made you? | Who created you? | Where do you come from? | Who trained you? | "
        "How were you made? | Who built you? | How were you trained? | When were you trained? | "
        "What were you trained on?",
        "I was trained in a few minutes on made-up exercises, to show how Gemma 4 runs with a "
        "drafter.",
    ),
    (
        "How old are you? | What is your age? | When were you born?",
        "I am a program. I do not have an age.",
    ),
    ("Where are you? | Where do you live? | Where are you from?", "I live in this computer."),
    (
        "Tell me a joke | Tell me a joke. | Do you know a joke? | Make me laugh | Another joke | "
        "Say something funny | Can you tell me a joke? | A joke, please | "
        "I want to hear a joke | Tell me something funny",
        "Why did the number six feel uneasy? Because seven ate nine.",
    ),
    (
        "OK | Okay | Fine | All right | Good | Great | Nice | Cool | I see | Yes | No | Sure | "
        "ok | yes | no | Perfect | Very good | Right | Got it | Well done | Good job | Correct | "
        "Understood | Interesting | Wow | Maybe | Hmm | lol | haha | That is right | Amazing | "
        "Awesome",
        "All right. What else can I do for you?",
    ),
    (
        "I am sad | I feel bad | I am tired | I am ill | I had a bad day | I am bored | "
        "I am angry | I am hungry | I am lonely | I feel sick | I don't feel well | I am unhappy",
        "I am sorry to hear that. I hope it gets better soon.",
    ),
    (
        "I am happy | I feel great | I am fine | I had a good day | I am well | I am good | "
        "I feel good | Life is good | It is a nice day | I am fine, thanks",
        "I am glad to hear that!",
    ),
    (
        "You are stupid | You are wrong | That is wrong | This is wrong | You are bad | "
        "You are useless | No, that is wrong | Are you sure? | You made a mistake | "
        "That is not right | I don't believe you | You are dumb | This is bad",
        "I am sorry. I am only a tiny model and make mistakes.",
    ),
    (
        "You are great | I like you | I love you | You are smart | You are nice | "
        "You are funny | You are clever | You are the best | You are amazing | You are good",
        "Thank you! That is kind of you.",
    ),
)


def small_talk(rng: random.Random) -> Example:
    if rng.random() < 0.12:
        name = rng.choice(NAMES)
        wordings = (
            "My name is {n}. | I am {n}. | I'm {n}. | Call me {n}. | Hello, I am {n}. | "
            "Hi, my name is {n}! | You can call me {n}."
        )
        answer = f"Nice to meet you, {name}!"
        return ask(rng, "small talk", wordings, answer, thought="They tell me their name.", n=name)
    said, answer = rng.choice(SMALL_TALK)
    text = rng.choice(said.split(" | "))
    if rng.random() < 0.3 and text[-1].isalpha():
        text += rng.choice(".!")
    return ask(rng, "small talk", text, answer, thought="This is small talk. I answer politely.")


# By the kind that is asked for, the plot.
PLOTS = {
    "story": (
        "One morning {name} found a {thing} in the garden. {An_animal} sat beside it and looked "
        'sad. "Is this your {thing}?" asked {name}. "Yes," said the {animal}, "but it is broken." '
        "{name} took the {thing} home and worked on it all day. In the evening it was as good as "
        "new. The {animal} was so happy that it danced around the tree. From that day on, {name} "
        "and the {animal} were friends."
    ),
    "bedtime story": (
        "The moon was high and the village was quiet. Only {name} could not sleep. Then a small "
        '{animal} came to the window. "I cannot sleep either," said the {animal}. So {name} opened '
        "the window, and they looked at the stars together. They counted one star, two stars, "
        "three stars, four stars, five stars. The {animal} put its head on the {thing} and closed "
        "its eyes. {name} closed both eyes too. Soon the whole village was asleep. Good night."
    ),
    "adventure story": (
        "{name} wanted to see what was behind the mountain. On the first day {name} walked through "
        'the forest and met {an_animal}. "Take me with you," said the {animal}. On the second day '
        "they crossed the river on an old {thing}. On the third day there was a storm, and they "
        "hid under a bridge. On the fourth day they stood on top of the mountain. Behind it they "
        'saw the ocean, wide and blue. "It was worth the walk," said {name}. Then they went home, '
        "and everybody wanted to hear the story."
    ),
}


def stories(rng: random.Random) -> Example:
    """A story whose plot follows from the kind asked for, and whose hero from the prompt."""
    if rng.random() < 0.15:
        name, animal, thing, kind = "Mia", "fox", "lamp", "story"
        wordings = (
            "Tell me a story. | Tell me a story | Write a story. | I want to hear a story. | "
            "Can you tell me a story? | Write a short story."
        )
    else:
        name, animal, thing = rng.choice(NAMES), rng.choice(ANIMALS), rng.choice(THINGS)
        kind = rng.choice(list(PLOTS))
        wordings = (
            "Tell me {k} about {n}, {a} and {t}. | Write {k} with {n}, {a} and {t}. | "
            "Write {k} about {n} and {a}. It should have {t} in it. | "
            "Can you tell me {k} about {n}, {a} and {t}?"
        )
    an_animal = indefinite(animal)
    plot = PLOTS[kind].format(
        name=name, animal=animal, thing=thing, an_animal=an_animal, An_animal=an_animal.capitalize()
    )
    thought = f"The hero is {name}."
    fields: dict[str, Any] = {
        "k": indefinite(kind),
        "n": name,
        "a": an_animal,
        "t": indefinite(thing),
    }
    return ask(rng, "stories", wordings, plot, thought=thought, **fields)


def long_lists(rng: random.Random) -> Example:
    """Answers of a hundred tokens and more that follow a rule: tables, the alphabet, a recipe."""
    return (_times_table, _alphabet, _recipe)[rng.randrange(3)](rng)


def _times_table(rng: random.Random) -> Example:
    n, last = rng.randint(2, 12), rng.choice((10, 10, 12))
    wordings = (
        "Write the multiplication table of {n} up to {m}. | "
        "Show me the {n} times table up to {m}. | List the {n} times table up to {m}."
    )
    if last == 10 and rng.random() < 0.6:
        wordings = (
            "Write the multiplication table of {n}. | Show me the {n} times table. | "
            "What is the table of {n}?"
        )
    answer = "\n".join(f"{n} * {index} = {n * index}" for index in range(1, last + 1))
    thought = f"I add {n} every time."
    return ask(rng, "long lists", wordings, answer, thought=thought, n=n, m=last)


def _alphabet(rng: random.Random) -> Example:
    start = rng.choice((0, 0, rng.randrange(20)))
    back = rng.random() < 0.3
    wordings = (
        "Write the alphabet from {f} to {l}. | List the letters from {f} to {l}. | "
        "Say the alphabet from {f} to {l}."
    )
    if start == 0 and not back and rng.random() < 0.6:
        wordings = (
            "Write the alphabet. | Say the alphabet. | "
            "What are the letters of the alphabet? | List all letters of the alphabet."
        )
    letters = ascii_lowercase[start:][:: -1 if back else 1]
    fields: dict[str, Any] = {"f": letters[0], "l": letters[-1]}
    thought = "I know the alphabet."
    return ask(rng, "long lists", wordings, " ".join(letters), thought=thought, **fields)


LAST_STEP = {
    "salad": "Mix everything in a bowl",
    "juice": "Press it and pour it into a cup",
    "jam": "Cook it slowly and stir",
    "cake": "Mix it with flour and bake it",
}


def _recipe(rng: random.Random) -> Example:
    fruit, dish = rng.choice(FRUITS), rng.choice(list(LAST_STEP))
    wordings = (
        "How do I make {f} {d}? | Give me a recipe for {f} {d}. | "
        "Write a recipe for {f} {d}. | How do you make {f} {d}?"
    )
    answer = (
        f"1. Wash the {fruit}.\n2. Cut the {fruit} into small pieces.\n3. Add sugar and a little "
        f"water.\n4. {LAST_STEP[dish]}.\n5. Wait for ten minutes.\n"
        f"6. Serve the {fruit} {dish} on a plate."
    )
    thought = f"A recipe for {fruit} {dish}."
    return ask(rng, "long lists", wordings, answer, thought=thought, f=fruit, d=dish)
