"""The demo task text2cron: a schedule in English and its cron expression.

Draws both from one generator. Sunday is 0; working days are written `1-5`, Saturday and Sunday `0,6`. Twelve o'clock is
noon or midnight or stands on a 24-hour clock, never "12 am".
"""

from collections.abc import Callable
from random import Random

from loraplex.demo.example import Example, Side, ask, side_of

WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
MONTHS = tuple("January February March April May June July August September October November December".split())
JOBS = tuple(
    "the backup, the report, the cleanup job, the import, the sync, the health check, the invoice run, the export, "
    "the cache refresh, the newsletter, the data load, the index rebuild, the log rotation, the price update".split(
        ", "
    )
)
HALF_DAY_HOURS = tuple(hour for hour in range(24) if hour % 12)
"""Hours that have a name with am or pm."""
OPENINGS = ("Run {}", "Start {}", "Schedule {}", "Execute {}", "Please run {}", "I want {} to run", "Trigger {}")


def draw_schedule(rng: Random, side: Side) -> Example:
    """One schedule of the wanted side; the instance is the cron expression."""
    while True:
        english, cron = rng.choice(SHAPES)(rng)
        if side_of(f"cron {cron}") is side:
            return ask(f"Cron expression for: {_sentence(rng, english)}", cron, f"cron {cron}")


def every_minutes(rng: Random) -> tuple[str, str]:
    """`*/N * * * *`."""
    step = rng.randint(2, 59)
    return rng.choice(
        [f"every {step} minutes", f"once every {step} minutes", f"each {step} minutes"]
    ), f"*/{step} * * * *"


def every_minutes_on(rng: Random) -> tuple[str, str]:
    """`*/N * * * days`."""
    step, (days, field) = rng.randint(2, 59), _days(rng)
    return rng.choice([f"every {step} minutes {days}", f"{days} every {step} minutes"]), f"*/{step} * * * {field}"


def every_minutes_between(rng: Random) -> tuple[str, str]:
    """`*/N H-H * * *`."""
    step, (first, last) = rng.randint(2, 59), sorted(rng.sample(HALF_DAY_HOURS, 2))
    hours = rng.choice([f"between {_hour(first)} and {_hour(last)}", f"from {_hour(first)} to {_hour(last)}"])
    return f"every {step} minutes {hours}", f"*/{step} {first}-{last} * * *"


def hourly(rng: Random) -> tuple[str, str]:
    """`M * * * *` and `M */N * * *`."""
    minute, step = rng.randint(1, 59), rng.randint(2, 12)
    if rng.random() < 0.4:
        text = rng.choice(
            [f"every hour at minute {minute}", f"hourly at minute {minute}", f"{minute} minutes past every hour"]
        )
        return text, f"{minute} * * * *"
    text = rng.choice([f"every {step} hours at minute {minute}", f"at minute {minute} of every {_nth(step)} hour"])
    return text, f"{minute} */{step} * * *"


def daily(rng: Random) -> tuple[str, str]:
    """`M H * * *`."""
    time, fields = _time(rng)
    return rng.choice(
        [f"every day at {time}", f"daily at {time}", f"at {time} every day", f"each day at {time}"]
    ), f"{fields} * * *"


def on_days(rng: Random) -> tuple[str, str]:
    """`M H * * days`."""
    (time, fields), (days, field) = _time(rng), _days(rng)
    return rng.choice([f"{days} at {time}", f"at {time} {days}"]), f"{fields} * * {field}"


def monthly(rng: Random) -> tuple[str, str]:
    """`M H D * *`."""
    (time, fields), day = _time(rng), rng.randint(1, 28)
    days = rng.choice(
        [f"on day {day} of every month", f"on the {_nth(day)} of each month", f"monthly on the {_nth(day)}"]
    )
    return rng.choice([f"{days} at {time}", f"at {time} {days}"]), f"{fields} {day} * *"


def yearly(rng: Random) -> tuple[str, str]:
    """`M H D m *`."""
    (time, fields), day, month = _time(rng), rng.randint(1, 28), rng.randint(1, 12)
    name = MONTHS[month - 1]
    days = rng.choice(
        [f"every year on {name} {day}", f"on {name} {day}", f"on the {_nth(day)} of {name}", f"each {day} {name}"]
    )
    return rng.choice([f"{days} at {time}", f"at {time} {days}"]), f"{fields} {day} {month} *"


SHAPES: tuple[Callable[[Random], tuple[str, str]], ...] = (
    every_minutes, every_minutes_on, every_minutes_between, hourly, daily, daily, on_days, on_days, on_days, monthly,
    yearly,
)  # fmt: skip


def _sentence(rng: Random, english: str) -> str:
    if rng.random() < 0.4:
        return english
    opening = rng.choice(OPENINGS).format(rng.choice(JOBS))
    return f"{opening} {english}" + rng.choice(["", "."])


def _nth(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _hour(hour: int) -> str:
    return f"{hour % 12} {'am' if hour < 12 else 'pm'}"


def _time(rng: Random) -> tuple[str, str]:
    """(English, "M H")."""
    hour, minute = (
        rng.randrange(24),
        rng.choice([0, 15, 30, 45, rng.randrange(60), rng.randrange(60), rng.randrange(60)]),
    )
    if hour not in HALF_DAY_HOURS:
        return {(0, 0): "midnight", (12, 0): "noon"}.get((hour, minute), f"{hour:02d}:{minute:02d}"), f"{minute} {hour}"
    twelve, half = hour % 12, "am" if hour < 12 else "pm"
    forms = [f"{twelve}:{minute:02d} {half}", f"{hour:02d}:{minute:02d}", f"{twelve}:{minute:02d}{half}"]
    if minute == 0:
        forms += [f"{twelve} {half}", f"{twelve}{half}"]
    if minute == 30:
        forms.append(f"half past {twelve} {half}")
    if minute == 15:
        forms.append(f"quarter past {twelve} {half}")
    return rng.choice(forms), f"{minute} {hour}"


def _days(rng: Random) -> tuple[str, str]:
    """(English, day-of-week field)."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(["on weekdays", "from Monday to Friday", "on working days"]), "1-5"
    if kind == 1:
        return rng.choice(["on Saturday and Sunday", "on Saturdays and Sundays"]), "0,6"
    if kind == 2:
        first, second = sorted(rng.sample(range(1, 6), 2))
        return f"on {WEEKDAYS[first]} and {WEEKDAYS[second]}", f"{first},{second}"
    day = rng.randrange(7)
    return rng.choice(
        [f"on {WEEKDAYS[day]}s", f"every {WEEKDAYS[day]}", f"on {WEEKDAYS[day]}", f"each {WEEKDAYS[day]}"]
    ), str(day)
