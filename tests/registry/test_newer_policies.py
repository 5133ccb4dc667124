"""Policies with fields of a newer release, which shares the database: they are left alone, also by a change."""

from __future__ import annotations

import json

import registry
from registry.principal import OPERATOR
from registry.upkeep_policies import POLICY_KEY
from tests.registry.backends import RegistryPlace


def test_the_upkeeps(reg: registry.Registry, place: RegistryPlace) -> None:
    reg.upkeep.change_policy({"grace_seconds": 60}, OPERATOR)
    place.execute(
        f"""UPDATE registry_meta SET value = '{{"grace_seconds": 60, "new": [1]}}' WHERE key = '{POLICY_KEY}'"""
    )
    assert reg.upkeep.policy().grace_seconds == 60
    changed = reg.upkeep.change_policy({"collect_every_seconds": 120}, OPERATOR)
    assert (changed.grace_seconds, changed.collect_every_seconds) == (60, 120)
    assert reg.upkeep.policy() == changed
    [(text,)] = place.execute(f"SELECT value FROM registry_meta WHERE key = '{POLICY_KEY}'")
    assert json.loads(text)["new"] == [1]


def test_a_tenants(reg: registry.Registry, place: RegistryPlace) -> None:
    reg.create_tenant("acme")
    place.execute("""UPDATE tenants SET policy = '{"require_signature": true, "new": [1]}' WHERE name = 'acme'""")
    assert reg.tenant_policy("acme").require_signature
    changed = reg.set_tenant_policy("acme", {"unverified_base": "refuse"})
    assert (changed.require_signature, changed.unverified_base) == (True, "refuse")
    assert reg.tenant_policy("acme") == changed
    [(text,)] = place.execute("SELECT policy FROM tenants WHERE name = 'acme'")
    assert json.loads(text)["new"] == [1]
