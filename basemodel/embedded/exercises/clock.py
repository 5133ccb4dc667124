"""Exercises on times of day, dates, weekdays and months in many notations.

No schedules and no cron expressions: those are a demo task.
"""

from random import Random

from basemodel.embedded.exercises.exercise import Exercise, Turn
from basemodel.embedded.exercises.lexicon import MONTHS, NAMES, NUMBER_WORDS, WEEKDAYS, one_of, word


def spoken_time(rng: Random, hour: int, minute: int) -> str:
    """A time of day as people write it."""
    twelve, half = (hour - 1) % 12 + 1, "am" if hour < 12 else "pm"
    forms = [f"{twelve}:{minute:02d} {half}", f"{twelve}:{minute:02d}{half}"]
    forms += [f"{hour:02d}:{minute:02d}", f"{hour}:{minute:02d}"]
    part = "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"
    if minute == 0:
        forms += [f"{twelve} {half}", f"{twelve}{half}", f"{twelve} o'clock {part}", f"{NUMBER_WORDS[twelve]} {part}"]
    if minute == 30:
        forms += [f"half past {twelve} {part}", f"half past {NUMBER_WORDS[twelve]} {half}"]
    if minute == 15:
        forms += [f"quarter past {twelve} {part}", f"quarter past {NUMBER_WORDS[twelve]} {half}"]
    if hour == 12 and minute == 0:
        forms += ["noon", "midday"]
    if hour == 0 and minute == 0:
        forms += ["midnight"]
    return rng.choice(forms)


def random_time(rng: Random) -> tuple[int, int]:
    """(hour, minute), with round minutes more often."""
    return rng.randrange(24), rng.choice([0, 0, 15, 30, 45, rng.randrange(60), rng.randrange(60)])


def to_24_hours(rng: Random) -> Turn:
    """Any notation to HH:MM."""
    hour, minute = random_time(rng)
    ask = one_of(rng, "As a 24-hour time: ", "Write as HH:MM: ", "What time is this on a 24-hour clock? ")
    return ask + spoken_time(rng, hour, minute), f"{hour:02d}:{minute:02d}"


def hour_or_minute(rng: Random) -> Turn:
    """Only the hour or only the minute, without leading zeros."""
    hour, minute = random_time(rng)
    text = spoken_time(rng, hour, minute)
    if rng.random() < 0.5:
        return one_of(rng, f"Which hour (0-23) is {text}?", f"Hour of {text}"), str(hour)
    return one_of(rng, f"How many minutes past the hour is {text}?", f"Minute of {text}"), str(minute)


def times_in_text(rng: Random) -> Turn:
    """Find the time in a sentence and write it in another order."""
    hour, minute = random_time(rng)
    text = f"{rng.choice(NAMES)} will {word(rng)} the {word(rng)} at {spoken_time(rng, hour, minute)}"
    if rng.random() < 0.5:
        return f"{text}. When? Answer as minute, then hour.", f"{minute}, {hour}"
    return f"{text}. Answer as hour={{h}} minute={{m}}.", f"hour={hour} minute={minute}"


def date_format(rng: Random) -> Turn:
    """Dates between notations."""
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1990, 2035)
    name = MONTHS[month - 1]
    forms = {
        "YYYY-MM-DD": f"{year}-{month:02d}-{day:02d}",
        "DD.MM.YYYY": f"{day:02d}.{month:02d}.{year}",
        "MM/DD/YYYY": f"{month:02d}/{day:02d}/{year}",
        "Mon D, YYYY": f"{name[:3]} {day}, {year}",
        "D Month YYYY": f"{day} {name} {year}",
        "YYYYMMDD": f"{year}{month:02d}{day:02d}",
    }
    old, new = rng.sample(sorted(forms), 2)
    ask = one_of(rng, f"Rewrite the date as {new}: ", f"{new} of ") if rng.random() < 0.8 else f"From {old} to {new}: "
    return ask + forms[old], forms[new]


def part_of_date(rng: Random) -> Turn:
    """Day, month or year of a date."""
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1990, 2035)
    name = MONTHS[month - 1]
    text = rng.choice([f"{name} {day}, {year}", f"{day} {name[:3]} {year}", f"{year}-{month:02d}-{day:02d}"])
    part, answer = rng.choice([("day", day), ("month number", month), ("year", year)])
    return f"Give the {part}: {text}", str(answer)


def month_number(rng: Random) -> Turn:
    """Month names to numbers and back."""
    places = rng.sample(range(12), rng.randint(1, 4))
    names = [MONTHS[place][: rng.choice([3, 12])] for place in places]
    if rng.random() < 0.7:
        return "Month numbers: " + ", ".join(names), ",".join(str(place + 1) for place in places)
    return "Month names: " + ", ".join(str(place + 1) for place in places), ", ".join(MONTHS[place] for place in places)


def weekday_index(rng: Random) -> Turn:
    """Weekdays as indices, Sunday being 0."""
    places = rng.sample(range(7), rng.randint(1, 3))
    names = [WEEKDAYS[place][: rng.choice([3, 12])] + rng.choice(["", "", "s"]) for place in places]
    if rng.random() < 0.7:
        return "Index with Sunday as 0: " + ", ".join(names), ",".join(map(str, places))
    return "Weekday names, Sunday is 0: " + ", ".join(map(str, places)), ", ".join(WEEKDAYS[place] for place in places)


def add_duration(rng: Random) -> Turn:
    """A time some minutes or hours later."""
    hour, minute, more = rng.randrange(20), rng.choice([0, 10, 15, 20, 30, 40]), rng.choice([5, 10, 15])
    if rng.random() < 0.5:
        return f"{hour:02d}:{minute:02d} plus {more} minutes", f"{hour:02d}:{minute + more:02d}"
    later = rng.randint(1, 3)
    return f"{hour:02d}:{minute:02d} plus {later} hours", f"{hour + later:02d}:{minute:02d}"


CLOCK: tuple[Exercise, ...] = (
    to_24_hours, hour_or_minute, times_in_text, date_format, part_of_date, month_number, weekday_index, add_duration,
)  # fmt: skip
