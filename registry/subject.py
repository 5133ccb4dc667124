"""How one object has the methods of several parts, without inheriting them.

    class Registry:
        _aliases = Subject[LocalAliases]()

        promote = _aliases.method(LocalAliases.promote)

        def __init__(self) -> None:
            self._aliases = LocalAliases(...)

`Registry.promote` is then a plain function with the name, signature and docstring of the part's, for readers,
`inspect`, editors and mypy alike; called, it asks the part that the object holds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

Part = TypeVar("Part")
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class Subject(Generic[Part]):
    """An attribute that holds a part, set once by the object's `__init__`, and makes methods of the part's."""

    def __set_name__(self, whole: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, whole: None, kind: type) -> Self: ...
    @overload
    def __get__(self, whole: object, kind: type) -> Part: ...
    def __get__(self, whole: object | None, kind: type) -> Self | Part:
        if whole is None:
            return self
        part: Part = whole.__dict__[self._name]
        return part

    def __set__(self, whole: object, part: Part) -> None:
        whole.__dict__[self._name] = part

    def method(
        self, method: Callable[Concatenate[Part, Arguments], Answer]
    ) -> Callable[Concatenate[Any, Arguments], Answer]:
        """The part's method as one of the whole's."""

        @wraps(method)
        def ask(whole: object, /, *arguments: Arguments.args, **named: Arguments.kwargs) -> Answer:
            return method(whole.__dict__[self._name], *arguments, **named)  # in a microsecond: event loops ask, too

        return ask
