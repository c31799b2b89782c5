"""Everything the demo model is taught as a fact: words, names and small tables.

Plain data, written for this project. It knows nothing of tasks, prompts or tokens.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words("""
    Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Mia Noah Olga Paul Rosa Sam
    Tina Victor Wendy Yusuf Zoe Alice Bob Carl Dora Erik Fiona George Hana Ivan Julia Karim
    Laura Max Nina Omar Petra Quinn Ravi Sara Tom Uma Vera Will Xenia Yara Adam Bella
""")

ANIMALS = _words("""
    cat dog horse cow sheep goat duck hen pig lion tiger bear wolf fox rabbit mouse frog snake
    owl bee fish whale shark eagle crow parrot monkey elephant zebra camel donkey turtle spider
    ant swan deer otter seal
""")

FRUITS = _words("""
    apple banana cherry grape lemon lime mango melon orange peach pear plum fig kiwi papaya
    apricot blueberry strawberry raspberry pineapple coconut
""")

THINGS = _words("""
    table chair lamp book pencil window door garden river mountain forest bridge castle island
    ocean letter bottle basket candle mirror pillow blanket hammer ladder bucket bicycle train
    rocket planet star moon cloud storm thunder winter summer spring autumn morning evening
    music guitar piano violin drum paper button pocket jacket shirt shoe hat glove scarf ring
    watch clock phone radio camera kitchen spoon fork knife plate cup bread butter cheese honey
    sugar salt pepper soup salad rice potato tomato carrot onion garlic school teacher student
    doctor farmer baker pilot sailor king queen city village street market museum library
    station airport harbour beach desert valley meadow flower tree leaf root stone sand water
    fire smoke light shadow colour picture story poem song dance game ball toy robot computer
    engine wheel
""")

WORDS = tuple(dict.fromkeys((*ANIMALS, *FRUITS, *THINGS)))

PLURALS = {
    **{fruit: fruit + "s" for fruit in FRUITS if fruit not in ("cherry", "peach", "mango")},
    "cherry": "cherries", "peach": "peaches", "mango": "mangoes", "child": "children",
    "mouse": "mice", "foot": "feet", "tooth": "teeth", "man": "men", "woman": "women",
    "goose": "geese", "box": "boxes", "city": "cities", "baby": "babies", "leaf": "leaves",
    "knife": "knives", "wolf": "wolves", "sheep": "sheep", "fish": "fish", "bus": "buses",
    "dish": "dishes", "fox": "foxes", "book": "books", "cat": "cats", "dog": "dogs",
    "chair": "chairs", "story": "stories",
}  # fmt: skip

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin",
    "Austria": "Vienna", "Portugal": "Lisbon", "Greece": "Athens", "Poland": "Warsaw",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Ireland": "Dublin", "Belgium": "Brussels", "Hungary": "Budapest", "Russia": "Moscow",
    "Ukraine": "Kyiv", "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Morocco": "Rabat", "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi",
    "Canada": "Ottawa", "Mexico": "Mexico City", "Brazil": "Brasilia",
    "Argentina": "Buenos Aires", "Chile": "Santiago", "Peru": "Lima", "Cuba": "Havana",
    "Australia": "Canberra", "Iceland": "Reykjavik", "England": "London", "Scotland": "Edinburgh",
    "Switzerland": "Bern", "Thailand": "Bangkok", "Vietnam": "Hanoi", "South Korea": "Seoul",
    "the Netherlands": "Amsterdam", "Romania": "Bucharest", "Bulgaria": "Sofia",
    "Croatia": "Zagreb", "Iran": "Tehran", "Iraq": "Baghdad", "Nepal": "Kathmandu",
    "the United Kingdom": "London", "the United States": "Washington, D.C.",
    "New Zealand": "Wellington",
}  # fmt: skip

CITIES = (
    *dict.fromkeys(city for city in CAPITALS.values() if "," not in city),
    *_words("Milan Hamburg Lyon Porto Boston Chicago Sydney Osaka Mumbai Munich"),
)

COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "a banana": "yellow",
    "a lemon": "yellow", "coal": "black", "blood": "red", "a strawberry": "red",
    "a carrot": "orange", "the sun": "yellow", "milk": "white", "a tomato": "red",
    "a frog": "green", "the sea": "blue", "chocolate": "brown", "a crow": "black",
    "a swan": "white", "an orange": "orange", "a cherry": "red", "a lime": "green",
    "night": "black", "a leaf": "green", "sand": "yellow", "wood": "brown", "a flamingo": "pink",
}  # fmt: skip

SOUNDS = {
    "cat": "meow", "dog": "woof", "cow": "moo", "sheep": "baa", "duck": "quack", "pig": "oink",
    "horse": "neigh", "lion": "roar", "owl": "hoot", "bee": "buzz", "snake": "hiss",
    "frog": "ribbit", "hen": "cluck", "crow": "caw", "mouse": "squeak", "donkey": "hee-haw",
    "wolf": "howl", "goat": "meh",
}  # fmt: skip

YOUNG = {
    "cat": "kitten", "dog": "puppy", "cow": "calf", "sheep": "lamb", "duck": "duckling",
    "pig": "piglet", "horse": "foal", "lion": "cub", "goat": "kid", "hen": "chick",
    "swan": "cygnet", "frog": "tadpole", "bear": "cub", "deer": "fawn", "goose": "gosling",
}  # fmt: skip

LEGS = {
    "cat": 4, "dog": 4, "horse": 4, "cow": 4, "duck": 2, "hen": 2, "spider": 8, "ant": 6,
    "bee": 6, "snake": 0, "fish": 0, "frog": 4, "owl": 2, "sheep": 4, "eagle": 2, "elephant": 4,
    "zebra": 4,
}  # fmt: skip

OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "left": "right", "day": "night", "fast": "slow",
    "old": "young", "happy": "sad", "light": "dark", "open": "closed", "full": "empty",
    "high": "low", "near": "far", "wet": "dry", "hard": "soft", "loud": "quiet", "rich": "poor",
    "early": "late", "strong": "weak", "clean": "dirty", "thick": "thin", "long": "short",
    "good": "bad", "true": "false", "first": "last", "easy": "difficult", "heavy": "light",
    "begin": "end", "buy": "sell", "win": "lose", "inside": "outside", "above": "below",
    "always": "never", "black": "white", "wide": "narrow",
}  # fmt: skip

TRANSLATIONS = {
    "French": {
        "cat": "chat", "dog": "chien", "house": "maison", "water": "eau", "bread": "pain",
        "book": "livre", "red": "rouge", "green": "vert", "one": "un", "two": "deux",
        "three": "trois", "hello": "bonjour", "thank you": "merci", "yes": "oui", "no": "non",
        "sun": "soleil", "moon": "lune", "milk": "lait",
    },
    "Spanish": {
        "cat": "gato", "dog": "perro", "house": "casa", "water": "agua", "bread": "pan",
        "book": "libro", "red": "rojo", "green": "verde", "one": "uno", "two": "dos",
        "three": "tres", "hello": "hola", "thank you": "gracias", "yes": "si", "no": "no",
        "sun": "sol", "moon": "luna", "milk": "leche",
    },
    "German": {
        "cat": "Katze", "dog": "Hund", "house": "Haus", "water": "Wasser", "bread": "Brot",
        "book": "Buch", "red": "rot", "green": "gruen", "one": "eins", "two": "zwei",
        "three": "drei", "hello": "hallo", "thank you": "danke", "yes": "ja", "no": "nein",
        "sun": "Sonne", "moon": "Mond", "milk": "Milch",
    },
}  # fmt: skip

PAST_TENSE = {
    "go": "went", "see": "saw", "eat": "ate", "drink": "drank", "run": "ran", "write": "wrote",
    "read": "read", "take": "took", "give": "gave", "come": "came", "sing": "sang",
    "swim": "swam", "fly": "flew", "buy": "bought", "think": "thought", "make": "made",
    "know": "knew", "find": "found", "walk": "walked", "play": "played", "jump": "jumped",
    "cook": "cooked", "say": "said", "tell": "told",
}  # fmt: skip

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip

ORDINALS = _words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
)

MONTH_DAYS = dict(zip(MONTHS, (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31), strict=True))

# One larger unit, the smaller unit, how many of the smaller make one of the larger.
UNITS = (
    ("hours", "minutes", 60), ("minutes", "seconds", 60), ("days", "hours", 24),
    ("weeks", "days", 7), ("years", "months", 12), ("metres", "centimetres", 100),
    ("kilometres", "metres", 1000), ("centimetres", "millimetres", 10),
    ("kilograms", "grams", 1000), ("litres", "millilitres", 1000), ("feet", "inches", 12),
    ("dozens", "pieces", 12), ("euros", "cents", 100), ("dollars", "cents", 100),
)  # fmt: skip

ONES = _words("""
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen
""")
TENS = _words("zero ten twenty thirty forty fifty sixty seventy eighty ninety")

# What it must not pretend to know: people, places, subjects, and things to be done.
UNKNOWN_PEOPLE = _words("""
    Shakespeare Einstein Napoleon Mozart Picasso Newton Cleopatra Beethoven Darwin Plato Gandhi
    Columbus Galileo Aristotle Lincoln Mandela Tolstoy Kafka Homer Caesar Rembrandt Chopin Tesla
    Curie
""")
UNKNOWN_PLACES = _words("""
    Mars Narnia Atlantis Wakanda Gondor Bavaria Texas Siberia Patagonia Utopia Jupiter Lapland
    Tibet Sicily California Zanzibar Wonderland Mordor Florida Oz Neptune
""")
UNKNOWN_SUBJECTS = (
    "gravity", "quantum physics", "the stock market", "the French Revolution", "photosynthesis",
    "football", "machine learning", "black holes", "inflation", "democracy", "evolution",
    "the Roman Empire", "love", "the meaning of life", "climate change", "electricity", "taxes",
    "chess", "yoga", "philosophy", "bitcoin", "dinosaurs", "the brain", "vaccines", "volcanoes",
    "the internet", "opera", "cooking", "history", "blockchain", "neural networks", "volleyball",
    "politics", "religion", "astronomy", "chemistry", "law", "the weather", "the news", "movies",
    "cars", "fashion", "poetry", "biology", "art", "space travel", "World War II", "the pyramids",
    "relativity", "earthquakes", "wine", "travel", "medicine", "money",
)  # fmt: skip
UNKNOWN_JOBS = (
    "write a Python function", "write an essay", "fix my code", "book a flight", "order a pizza",
    "send an email", "draw a picture", "play some music", "drive my car", "prove a theorem",
    "pay my bills", "write a love letter", "plan my holiday", "find me a job",
    "summarise this article", "open the browser", "solve this equation", "translate this page",
    "write a business plan", "make a website", "hack a bank", "write a haiku", "recommend a film",
    "cook dinner", "call my mother", "read my mind", "sort this array in C++",
    "explain this joke", "give me legal advice", "predict the future", "write a poem",
    "build a rocket", "compose a symphony", "diagnose my cough", "buy some shares",
    "delete my files", "write a SQL query",
)  # fmt: skip


def number_in_words(number: int) -> str:
    """0 to 999 in English, as in "two hundred and five"."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    rest = f" and {number_in_words(number % 100)}" if number % 100 else ""
    return f"{ONES[number // 100]} hundred{rest}"
