"""What came of publishes and promotions is counted once, over whichever face they came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import registry
from registry.errors import ConflictError, RejectedAdapterError

OPERATOR = registry.Principal.operator()


def test_what_happens_in_process_is_counted(
    reg: registry.Registry, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_adapter()
    for _ in range(2):
        reg.publish(folder, "acme/sql", principal=OPERATOR)
    with pytest.raises(RejectedAdapterError):
        reg.publish(tmp_path, "acme/sql", principal=OPERATOR)
    assert reg.tally.publishes == {"new": 1, "known": 1, "refused": 1}
    reg.publish(make_adapter(seed=5), "acme/sql", principal=OPERATOR)
    reg.promote("acme/sql@1", "prod", principal=OPERATOR)
    reg.promote("acme/sql@2", "prod", principal=OPERATOR)
    reg.rollback("acme/sql", "prod", principal=OPERATOR)
    with pytest.raises(ConflictError):
        reg.promote("acme/sql@2", "prod", principal=OPERATOR, expected=2)
    reg.start_canary("acme/sql@2", "prod", permille=100, principal=OPERATOR)
    reg.promote_canary("acme/sql", "prod", principal=OPERATOR)
    reg.delete_alias("acme/sql", "prod", principal=OPERATOR)
    assert reg.tally.moves == {"promote": 3, "rollback": 1, "delete": 1}
