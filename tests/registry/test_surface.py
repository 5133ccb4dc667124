"""The public surface, and what the package must never load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import registry

PACKAGE = Path(registry.__file__).parent
SURFACE = """
ANY AdapterName AdapterRef AdapterSummary AliasMove AliasMovedError AliasPolicy AuthenticationError BaseMismatchError
BaseModule BaseRecord ConflictError Digest FileEntry GateError IncompatibleRegistryError IntegrityError
InvalidBaseError InvalidNameError InvalidValueError IssuedToken MetricRule NotFoundError PermissionDeniedError
Principal Publication QuotaExceededError Registry RegistryError RejectReason RejectedAdapterError Role StorageError
Tenant Token Version Visibility digest_of_files open
""".split()
METHODS = """
adapter add_key add_mirror alias_history aliases approve attach_signature attest_evaluation attest_probes attest_scan
attestations audit_entries authenticate backup base base_lineage bases blobs canaries card caretaker change_canary
check_gate check_integrity close collect_garbage commits courier create_tenant create_token create_webhook
delete_adapter delete_alias delete_version delete_webhook diff events folder follow_mirror fsck has_tokens lease leases
lineage list_adapters list_keys list_mirrors list_tenants list_tokens list_versions list_webhooks move_adapter moved_to
newest_event open_file page_adapters page_versions pin pins policies policy promote promote_canary publish
publish_outcome publish_staged pull quotas receiving refs register_base release_leases remembered remove_mirror
remove_policy replay_webhook repositories resolve resolve_split restore retention revoke_key revoke_token rollback
rotate_token set_policy set_quota set_retention set_tenant_policy set_visibility set_webhook_policy signatures
signing_secret snapshots start_canary stop_canary sync_mirror tally tenant_policy test_webhook unpin upkeep usage
verify_audit webhook_deliveries webhook_policy
""".split()


def test_the_public_surface() -> None:
    assert sorted(registry.__all__) == SURFACE
    assert all(hasattr(registry, name) for name in SURFACE)


def test_the_methods_of_a_registry(reg: registry.Registry) -> None:
    assert sorted(name for name in dir(reg) if not name.startswith("_")) == METHODS


def test_every_error_has_the_one_root() -> None:
    errors = [getattr(registry, name) for name in SURFACE if name.endswith("Error")]
    assert all(issubclass(error, registry.RegistryError) for error in errors)


def test_nothing_heavy_is_loaded() -> None:
    modules = sorted(
        "registry." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if "migrations" not in path.parts and path.name != "__init__.py"
    )
    heavy = (
        "torch",
        "transformers",
        "peft",
        "bitsandbytes",
        "safetensors",
        "pickle5",
        "basemodel",
        "serving",
        "trainer",
    )
    script = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout.strip() == "[]"


def test_the_source_unpickles_and_executes_nothing() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not names & {"pickle", "marshal", "shelve", "torch", "importlib", "runpy", "subprocess"}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec", "compile", "__import__"}, path
