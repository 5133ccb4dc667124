"""The repository and the revision that a request names.

`acme/sql` is an adapter. `acme/sql.at.prod` is the same adapter, read only, as its alias (branch, tag, version) `prod`
has it: for clients that know no revisions. There `main` means `prod`, and commit ids mean what they always mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from registry.errors import InvalidNameError, NotFoundError, PermissionDeniedError
from registry.lookup import missing_adapter
from registry.names import AdapterName
from registry.revisions import is_commit_id, missing_revision
from registry.trees import DEFAULT_BRANCH

PIN = ".at."
PIN_CHARACTERS = 96


@dataclass(frozen=True)
class Repo:
    """An adapter, as a whole or pinned to a revision."""

    name: AdapterName
    pinned: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Repo:
        """The repository of a path with `{tenant}` and `{name}`. Raises NotFoundError for what can be none."""
        return cls.parse(f"{values['tenant']}/{values['name']}")

    @classmethod
    def parse(cls, text: str) -> Repo:
        """Parse a repository id. Raises NotFoundError."""
        base, pin, pinned = text.partition(PIN)
        try:
            if pin and not 1 <= len(pinned) <= PIN_CHARACTERS:
                raise _missing(text)
            return cls(AdapterName.parse(base), pinned if pin else None)
        except InvalidNameError as error:
            raise _missing(text) from error

    @property
    def id(self) -> str:
        """As clients write it."""
        return str(self.name) if self.pinned is None else f"{self.name}{PIN}{self.pinned}"

    def revision(self, asked: str = DEFAULT_BRANCH) -> str:
        """What to look up where the client asked for this revision. Raises NotFoundError."""
        if self.pinned is None or is_commit_id(asked):
            return asked
        if asked in (DEFAULT_BRANCH, self.pinned):
            return self.pinned
        raise missing_revision(self.name, asked)

    def require_whole(self, action: str) -> None:
        """Raises PermissionDeniedError where this is a pinned repository, which cannot be written."""
        if self.pinned is not None:
            why = f"it shows {self.pinned!r} of {str(self.name)!r} and is read only; write to {str(self.name)!r}"
            raise PermissionDeniedError(action, self.id, why)


def _missing(text: str) -> NotFoundError:
    return missing_adapter(AdapterName("", text[:200]))
