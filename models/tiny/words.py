"""The closed world of tiny-llava: what is drawn, in which colours, and which words and numbers are printed."""

import random

SHAPES = ["circle", "square", "triangle", "star", "heart", "cross"]
DRAWINGS = ["smiley", "person", "cone", "tree", "note", "puzzle", "flag", "card"]
COLORS = ["red", "green", "blue", "yellow", "orange", "purple", "black", "white"]
LETTERS = [chr(ord("a") + i) for i in range(26)]
DIGITS = [str(i) for i in range(10)]
# Class 0 of every label table means "nothing there".
KINDS = ["", *SHAPES, *DRAWINGS, *LETTERS, *DIGITS]
SLOTS = 5  # letters that a patch can count; printed words have three or four, numbers two or three

PLURALS = {"cross": "crosses", "person": "people"}
COUNTS = ["zero", "one", "two", "three", "four"]
CELLS = [
    ["top left", "top", "top right"],
    ["left", "center", "right"],
    ["bottom left", "bottom", "bottom right"],
]

_TRAIN_TEXT = """
able acid aged also area army away baby back ball band bank base bath bear beat been beer bell belt best bill bird
blow blue boat body bomb bond bone book boom born boss both bowl bulk burn bush busy call calm came camp card care case
cash cast cell chat chip city club coal coat code cold come cook cool cope copy core cost crew crop dark data date dawn
days dead deal dean dear debt deep deny desk dial diet disc disk does done door dose down draw drew drop drug dual duke
dust duty each earn ease east easy edge else even ever evil exit face fact fail fair fall farm fast fate fear feed feel
feet fell felt file fill film find fine fire firm fish five flat flow food foot ford form fort four free from fuel full
fund gain game gate gave gear gene gift girl give glad goal goes gold golf gone good gray grew grey grow gulf hair half
hall hand hang hard harm hate have head hear heat held hell help here hero high hill hire hold hole holy home hope host
hour huge hung hunt hurt idea inch into iron item jack jane jean john join jump jury just keen keep kent kept kick kill
apple bread chair dance eagle fruit glass horse image juice knife lemon mango night ocean paint queen river sugar table
uncle voice water youth zebra cat dog sun map pen cup hat box key jar van zip fox owl pig ant bee cow elk gum ice jam
"""
_TEST_TEXT = """
stop open park shop west exit taxi milk cafe wind snow rain moon lake road yard king play quiz jazz menu sale news
north south light music plant smile train world brown cloud dream earth frost grape honey ink joy kit log mud nut oak
pie rug sea tea toy vet wax yak zoo bus gym hut ivy jet kid lip mix
"""
TEST_WORDS = sorted(w for w in set(_TEST_TEXT.split()) if len(w) < SLOTS)
TRAIN_WORDS = sorted(w for w in set(_TRAIN_TEXT.split()) - set(TEST_WORDS) if len(w) < SLOTS)


def is_test_number(number: str) -> bool:
    """One number in seven is printed in test pictures only."""
    return int(number) % 7 == 3


def sample_word(rng: random.Random, split: str) -> str:
    """A printed word: real and unseen in training for "test", real or made up (never a test word) for "train"."""
    if split == "test":
        return rng.choice(TEST_WORDS)
    if rng.random() < 0.3:
        return rng.choice(TRAIN_WORDS)
    while True:
        word = "".join(rng.choice(LETTERS) for _ in range(rng.randint(3, SLOTS - 1)))
        if word not in TEST_WORDS:
            return word


def sample_number(rng: random.Random, split: str) -> str:
    """Two or three digits, never starting with zero."""
    while True:
        digits = rng.randint(2, 3)
        number = str(rng.randint(10 ** (digits - 1), 10**digits - 1))
        if is_test_number(number) == (split == "test"):
            return number


def plural(name: str) -> str:
    return PLURALS.get(name, name + "s")


def article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"
