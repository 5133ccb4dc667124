"""The demo task log2json: a log line and its JSON object.

Four formats (syslog, nginx, application, key=value), each with its own key order. Draws lines, does not parse them.
"""

import json
from collections.abc import Callable
from random import Random

from loraplex.demo.example import Example, Side, ask, side_of

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
HOSTS = tuple("web db api cache mail node edge gw auth build proxy store".split())
PROGRAMS = tuple("sshd cron kernel systemd postfix dockerd ntpd nginx sudo dhclient kubelet postgres".split())
SERVICES = tuple("payments orders search users billing catalog mailer gateway reports ingest images auth".split())
PARTS = tuple("worker http db queue cache api main client".split())
LEVELS = ("DEBUG", "INFO", "INFO", "WARNING", "ERROR", "CRITICAL")
SEGMENTS = tuple("api v1 v2 users orders items login static img search cart admin files health docs".split())
SUBJECTS = tuple("connection request job session upload query lease token transfer file payment lock".split())
VERBS = (
    "failed",
    "started",
    "closed",
    "timed out",
    "accepted",
    "rejected",
    "finished",
    "expired",
    "retried",
    "not found",
    "dropped",
)
USERS = tuple("root anna deploy admin ben backup carla guest nora svc-api tom www-data".split())

Fields = dict[str, str | int]


def draw_log_line(rng: Random, side: Side) -> Example:
    """One line; the instance lists its host, address, path and message, and each of them is of the wanted side."""
    line, fields, instance = rng.choice(FORMATS)(rng, side)
    return ask(f"Log line as JSON:\n{line}", json.dumps(fields), instance)


def syslog(rng: Random, side: Side) -> tuple[str, Fields, str]:
    """`Nov 22 03:19:43 web-3 sshd[812]: message`."""
    time = f"{rng.choice(MONTHS)} {rng.randint(1, 28):2d} {_clock(rng)}"
    host, program, message = _host(rng, side), rng.choice(PROGRAMS), _message(rng, side)
    if rng.random() < 0.3:
        fields: Fields = {"time": time, "host": host, "program": program, "message": message}
        return f"{time} {host} {program}: {message}", fields, f"{host}\n{message}"
    pid = rng.randint(2, 39999)
    fields = {"time": time, "host": host, "program": program, "pid": pid, "message": message}
    return f"{time} {host} {program}[{pid}]: {message}", fields, f"{host}\n{message}"


def nginx(rng: Random, side: Side) -> tuple[str, Fields, str]:
    """`10.1.2.3 - - [22/Nov/2026:03:19:43 +0000] "GET /path HTTP/1.1" 200 512`."""
    address, path = _address(rng, side), _path(rng, side)
    time = f"{rng.randint(1, 28):02d}/{rng.choice(MONTHS)}/{rng.randint(2023, 2027)}:{_clock(rng)} +0000"
    method = rng.choice(["GET", "GET", "GET", "POST", "PUT", "DELETE", "HEAD"])
    status, size = (
        rng.choice([200, 200, 201, 204, 301, 302, 400, 401, 403, 404, 429, 500, 502, 503]),
        rng.randint(0, 99999),
    )
    user = rng.choice(["-", "-", "-", *USERS])
    line = f'{address} - {user} [{time}] "{method} {path} HTTP/1.1" {status} {size}'
    fields: Fields = {"ip": address, "time": time, "method": method, "path": path, "status": status, "bytes": size}
    return line, fields, f"{address}\n{path}"


def application(rng: Random, side: Side) -> tuple[str, Fields, str]:
    """`2026-11-22 03:19:43,123 ERROR payments.worker: message`, or with brackets."""
    time = f"{_date(rng)} {_clock(rng)}" + rng.choice(["", f",{rng.randrange(1000):03d}"])
    level, logger, message = rng.choice(LEVELS), f"{rng.choice(SERVICES)}.{rng.choice(PARTS)}", _message(rng, side)
    shape = rng.choice(["{} {} {}: {}", "{} [{}] {}: {}", "{} {} [{}] {}", "{} - {} - {} - {}"])
    fields: Fields = {"time": time, "level": level, "logger": logger, "message": message}
    return shape.format(time, level, logger, message), fields, message


def key_value(rng: Random, side: Side) -> tuple[str, Fields, str]:
    """`ts=2026-11-22T03:19:43Z level=info service=orders host=web-3 ms=12 msg="message"`, the pairs in any order."""
    time, host, message = f"{_date(rng)}T{_clock(rng)}Z", _host(rng, side), _message(rng, side)
    level, service, took = rng.choice(LEVELS).lower(), rng.choice(SERVICES), rng.randint(1, 9999)
    pairs = [f"level={level}", f"service={service}", f"host={host}", f"ms={took}", f'msg="{message}"']
    if rng.random() < 0.5:
        rng.shuffle(pairs)
    fields: Fields = {"time": time, "level": level, "service": service, "host": host, "ms": took, "message": message}
    return f"ts={time} {' '.join(pairs)}", fields, f"{host}\n{message}"


FORMATS: tuple[Callable[[Random, Side], tuple[str, Fields, str]], ...] = (syslog, nginx, application, key_value)


def _of_side(rng: Random, side: Side, draw: Callable[[Random], str]) -> str:
    while True:
        text = draw(rng)
        if side_of(text) is side:
            return text


def _clock(rng: Random) -> str:
    return f"{rng.randrange(24):02d}:{rng.randrange(60):02d}:{rng.randrange(60):02d}"


def _date(rng: Random) -> str:
    return f"{rng.randint(2023, 2027)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _host(rng: Random, side: Side) -> str:
    return _of_side(rng, side, lambda draw: f"{draw.choice(HOSTS)}{draw.choice(['-', ''])}{draw.randint(1, 99)}")


def _address(rng: Random, side: Side) -> str:
    return _of_side(rng, side, lambda draw: ".".join(str(draw.randint(1, 254)) for _ in range(4)))


def _path(rng: Random, side: Side) -> str:
    def draw_path(draw: Random) -> str:
        query = f"?page={draw.randint(1, 50)}", f"?q={draw.choice(SUBJECTS)}"
        ending = draw.choice(["", f"/{draw.randint(1, 9999)}", ".html", ".png", *query])
        return "/" + "/".join(draw.sample(SEGMENTS, draw.randint(1, 3))) + ending

    return _of_side(rng, side, draw_path)


def _message(rng: Random, side: Side) -> str:
    def draw_message(draw: Random) -> str:
        head = f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)}"
        octets = ".".join(str(draw.randint(1, 254)) for _ in range(4))
        tails = [
            f" for user {draw.choice(USERS)}",
            f" for user {draw.choice(USERS)} from {octets}",
            f" after {draw.randint(1, 900)} ms",
            f" on port {draw.randint(20, 65000)}",
            f" (attempt {draw.randint(1, 20)})",
            f" for order {draw.randint(1, 99999)}",
        ]
        return head + draw.choice(tails)

    return _of_side(rng, side, draw_message)
