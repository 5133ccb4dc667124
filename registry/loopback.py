"""Which addresses mean this machine only: what a server without tokens may listen on, and be addressed by."""

from __future__ import annotations

import ipaddress


def is_loopback_host(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_loopback_address(address: str) -> bool:
    """The same of what a Host or Origin header holds: a host, with a port or without."""
    name, colon, port = address.rpartition(":")
    has_port = colon and port.isdigit() and (name.endswith("]") or ":" not in name)
    return is_loopback_host(name if has_port else address)
