"""The base's own chat template: messages to the prompt text that the base was trained on.

It does: compile the template of the base's folder in Jinja's sandbox with what transformers gives to a template, and
keep a client's text from forging a turn; tell of functions in plain turns where the template cannot (`tool_prompt`). It
does not: read a template from an adapter or from a request, ever.

Control tokens that a message contains (`<|im_end|>` typed by a user) are marked before rendering; `Tokenization`
encodes marked ones as plain text. The marks are private-use characters, removed from messages beforehand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from serving.errors import BaseFolderError, InvalidFieldError
from serving.tool_prompt import plain_turns
from serving.tool_syntax import HERMES, syntax_shown_by

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
LONGEST_TEMPLATE_BYTES = 1024 * 1024
LONGEST_REASON_CHARACTERS = 200
MARK_START, MARK_END = "\ue0f0", "\ue0f1"
_BEYOND_ASCII = re.compile(f"[^\x00-\x7f{MARK_START}{MARK_END}]")
MARKED = re.compile(f"{MARK_START}(.*?){MARK_END}", re.DOTALL)


class ChatTemplate:
    """A compiled template with the special tokens that it may print."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], control_tokens: Iterable[str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        environment.globals["namespace"] = _PlainNamespace
        try:
            self._template = environment.from_string(source)
            takes_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
        except TemplateError as error:
            raise BaseFolderError("the chat template", f"cannot be compiled ({error})") from error
        own_syntax = syntax_shown_by(source) if takes_tools else None
        self.tool_syntax = own_syntax or HERMES
        self._takes_tools = own_syntax is not None
        self._special_tokens = dict(special_tokens)
        longest_first = sorted(filter(None, control_tokens), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @classmethod
    def load(cls, folder: Path, control_tokens: Iterable[str]) -> ChatTemplate | None:
        """The template of a base's folder, or None where it has none."""
        config = _read_config(folder)
        path = folder / TEMPLATE_FILE
        source = path.read_text() if path.is_file() else config.get("chat_template")
        if isinstance(source, list):  # named templates: the one for plain chat
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        if source is None:
            return None
        if len(source) > LONGEST_TEMPLATE_BYTES:
            raise BaseFolderError("the chat template", f"is longer than {LONGEST_TEMPLATE_BYTES} bytes")
        return cls(source, _special_tokens(config), control_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The prompt up to the point where the assistant speaks, control tokens of messages and tools marked.

        Raises InvalidFieldError where the template refuses the messages.
        """
        turns: Sequence[Mapping[str, Any]] = [
            {**self._marked(message), "role": message["role"]} for message in messages
        ]
        shown = [self._marked(tool) for tool in tools]
        if not self._takes_tools:
            turns, shown = plain_turns(turns, shown), []
        try:
            return self._template.render(
                messages=turns, tools=shown or None, documents=None, add_generation_prompt=True, **self._special_tokens
            )
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            told = error.message if isinstance(error, TemplateError) else None
            reason = (told or "it fails on them")[:LONGEST_REASON_CHARACTERS]
            raise InvalidFieldError(
                f"The base's chat template refuses these messages: {reason}", param="messages"
            ) from error

    def _marked(self, value: Any) -> Any:
        """The same value with every text in it marked, names included."""
        if isinstance(value, str):
            return self._mark(value)
        if isinstance(value, Mapping):
            return {self._mark(name): self._marked(child) for name, child in value.items()}
        return [self._marked(child) for child in value] if isinstance(value, (list, tuple)) else value

    def _mark(self, text: str) -> str:
        clean = text.replace(MARK_START, "").replace(MARK_END, "")
        return self._control.sub(f"{MARK_START}\\g<0>{MARK_END}", clean)


class _GenerationBlock(Extension):
    """`{% generation %}`: marks the assistant's part for training; here its content alone counts."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own attribute)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _PlainNamespace(Namespace):
    """Jinja's namespace without underscore names, which lead to Python's internals."""

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise TemplateError(f"the name {name} is not allowed in a namespace")
        super().__setitem__(name, value)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now(UTC).strftime(form)


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """JSON in which the marks stay what they are, also where everything else beyond ASCII is escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _BEYOND_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text) if ensure_ascii else text


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise BaseFolderError(CONFIG_FILE, f"is no JSON ({error})") from error
    return config if isinstance(config, dict) else {}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and its kind: a string, or an object that holds one as `content`."""
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
    tokens = {}
    for name in names:
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            tokens[name] = value
    return tokens
