"""A port, and the address under which it is told of."""

from __future__ import annotations

import pytest

from registry.listening import listen, url_of


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "[::1]"),
        ("::", "[::1]"),
    ],
)
def test_the_address_of_a_server_can_be_asked(host: str, shown: str) -> None:
    with listen("127.0.0.1", 0) as listener:
        assert url_of(host, listener) == f"http://{shown}:{listener.getsockname()[1]}"
