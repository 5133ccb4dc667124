"""Random words, identifiers, names, numbers and times that fill the exercises.

Draws only from the generator it is given. The English words come from the language reference that ships with Python
(`pydoc_data.topics`), so they differ a little between Python versions.
"""

import re
from functools import cache
from pydoc_data.topics import topics
from random import Random

SYLLABLES = (
    "ba be bi bo bra bre ca ce cla co cra da de di do dra du el en fa fe fi flo fra ga ge gi go gra ha he hi hol "
    "in ja jo ka ke ki kor la le li lo lu ma me mi mo mu na ne ni no nu ol or pa pe pi plo pra qua ra re ri ro "
    "ru sa se shi so sta su ta te ti to tra tu ul un va ve vi vo wa we wi xa ya yo za ze zi zo"
).split()
CODAS = ("", "", "", "n", "r", "s", "t", "l", "x", "m", "nd", "rt", "ck", "sh", "st")
NAMES = (
    "Anna Ben Carla David Emma Farid Greta Hugo Ines Jonas Karim Lena Marco Nora Omar Paula Quinn Rosa Sven Tara "
    "Uma Viktor Wanda Xenia Yusuf Zoe Alice Bob Carol Dan Erin Frank Grace Henry Ivan Judy Kevin Laura Mike Nina "
    "Oscar Peter Rita Sam Tom Ursula Vera Will Yara Zack Amara Bruno Chen Dmitri Elif Fatima Giulia Hiro Ingrid "
    "Jamal Kenji Lucia Mei Noah Olga Priya"
).split()
PLACES = (
    "Paris Rome Oslo Cairo Lima Tokyo Berlin Madrid Vienna Dublin Lagos Quito Delhi Seoul Boston Denver Austin "
    "Geneva Lisbon Prague Warsaw Athens Zurich Milan Turin Bergen Kyoto Hanoi Accra Nairobi Tunis Porto Ghent "
    "Leeds Perth Bogota Havana"
).split()
THINGS = (
    "apple table chair lamp book pencil bottle window door garden river mountain cloud engine wheel camera radio "
    "ticket letter bridge castle forest island mirror needle orange pepper rocket saddle tiger umbrella violin "
    "wagon yacht zebra basket candle drum eagle feather guitar hammer iron jacket kettle ladder magnet notebook "
    "onion piano quilt ribbon spoon towel vase whale order customer product invoice payment account employee "
    "student course teacher device sensor flight hotel room ticket song album movie player team match store item "
    "vendor shipment project task report message event author article patient visit"
).split()
FIELDS = (
    "id name title price total amount quantity count size weight height width color status state city country "
    "address email phone age year month day date time start end created updated owner author rating score level "
    "rank type kind category group role code number value unit speed distance duration length salary budget cost "
    "discount tax stock brand model version path host port user action result message source target label note "
    "tag active paid currency language region zone"
).split()
ADJECTIVES = (
    "red blue green small large old new quick slow bright dark heavy light cold warm soft hard empty full clean "
    "quiet loud happy final first last open closed active public private local remote daily monthly gross net "
    "main extra"
).split()
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday".split()


@cache
def english_words() -> tuple[str, ...]:
    """Lower-case words of 3 to 10 letters found in the language reference, sorted."""
    found = re.findall(r"\b[a-z]{3,10}\b", " ".join(topics[key] for key in sorted(topics)))
    return tuple(sorted(set(found)))


def pseudo_word(rng: Random) -> str:
    """A made-up, pronounceable lower-case word."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 3))) + rng.choice(CODAS)


def word(rng: Random) -> str:
    """A lower-case word, real or made up."""
    draw = rng.random()
    if draw < 0.35:
        return rng.choice(english_words())
    if draw < 0.6:
        return rng.choice(THINGS)
    if draw < 0.75:
        return rng.choice(FIELDS)
    return pseudo_word(rng)


def words(rng: Random, least: int, most: int) -> list[str]:
    """Distinct words, between least and most of them."""
    wanted = rng.randint(least, most)
    found: dict[str, None] = {}
    while len(found) < wanted:
        found[word(rng)] = None
    return list(found)


def identifier(rng: Random) -> str:
    """A snake_case name such as `unit_price` or `host3`."""
    draw = rng.random()
    if draw < 0.35:
        return rng.choice(FIELDS)
    if draw < 0.7:
        return f"{rng.choice(THINGS + ADJECTIVES)}_{rng.choice(FIELDS)}"
    if draw < 0.85:
        return f"{word(rng)}_{word(rng)}"
    if draw < 0.93:
        return pseudo_word(rng)
    return f"{word(rng)}{rng.randint(0, 99)}"


def identifiers(rng: Random, least: int, most: int) -> list[str]:
    """Distinct identifiers."""
    wanted = rng.randint(least, most)
    found: dict[str, None] = {}
    while len(found) < wanted:
        found[identifier(rng)] = None
    return list(found)


def number(rng: Random) -> str:
    """A number as text; small ones, long ones and decimals are all common."""
    draw = rng.random()
    if draw < 0.3:
        return str(rng.randint(0, 20))
    if draw < 0.75:
        return str(rng.randint(0, 10 ** rng.randint(2, 6)))
    if draw < 0.9:
        return f"{rng.randint(0, 999)}.{rng.randint(0, 99)}"
    return f"{rng.randint(0, 99999):05d}"


def code(rng: Random) -> str:
    """An opaque token such as `k7-3fa9`, a dotted number, a path or a hex string: what can only be copied."""
    shape = rng.randrange(9)
    if shape == 0:
        return "".join(rng.choice("0123456789abcdef") for _ in range(rng.randint(4, 12)))
    if shape == 1:
        return ".".join(str(rng.randint(0, 255)) for _ in range(rng.randint(2, 4)))
    if shape == 2:
        return (
            "/"
            + "/".join(word(rng) for _ in range(rng.randint(1, 4)))
            + rng.choice(["", ".py", ".txt", ".html", ".json"])
        )
    if shape == 3:
        return (
            "".join(rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(rng.randint(2, 4)))
            + f"-{rng.randint(1, 9999)}"
        )
    if shape == 6:
        return f"{rng.randint(1990, 2035)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    if shape == 7:
        return f"{rng.randrange(24):02d}:{rng.randrange(60):02d}:{rng.randrange(60):02d}"
    if shape == 4:
        return f"{word(rng)}-{rng.randint(0, 99):02d}"
    if shape == 5:
        return f"{word(rng)}.{word(rng)}.{rng.choice(['com', 'org', 'net', 'io'])}"
    return f"{word(rng)}@{pseudo_word(rng)}.{rng.choice(['com', 'org', 'net'])}"


def value(rng: Random) -> str:
    """Anything a field may hold: a word, a name, a phrase, a number or an opaque token."""
    draw = rng.random()
    if draw < 0.2:
        return rng.choice(NAMES)
    if draw < 0.3:
        return rng.choice(PLACES)
    if draw < 0.5:
        return number(rng)
    if draw < 0.7:
        return word(rng)
    if draw < 0.88:
        return code(rng)
    return phrase(rng, 2, 4)


def phrase(rng: Random, least: int, most: int) -> str:
    """Words with blanks between them."""
    return " ".join(word(rng) for _ in range(rng.randint(least, most)))


def sentence(rng: Random) -> str:
    """A capitalized, nonsensical sentence with a full stop."""
    text = phrase(rng, 3, 9)
    if rng.random() < 0.3:
        text = f"{rng.choice(NAMES)} {text} in {rng.choice(PLACES)}"
    return text[0].upper() + text[1:] + rng.choice([".", ".", ".", "!", "?"])


def one_of(rng: Random, *choices: str) -> str:
    """One of several phrasings."""
    return rng.choice(choices)
