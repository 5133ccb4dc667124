"""What the demo does, in numbers: which adapters it trains for whom, on how much data, and how it measures them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from loraplex.demo.tasks import TASKS, DemoTask


@dataclass(frozen=True)
class AdapterPlan:
    """One adapter: the task that it learns, the tenant that owns it, and the alias that is moved to it, if any."""

    task: DemoTask
    tenant: str
    alias: str | None = None

    @property
    def adapter(self) -> str:
        """The adapter's full name."""
        return f"{self.tenant}/{self.task.name}"

    @property
    def model(self) -> str:
        """What a client gives as `model`."""
        return f"{self.adapter}@{self.alias}" if self.alias else self.adapter


@dataclass(frozen=True)
class DemoPlan:
    """The whole demo. Fewer `adapter_slots` than adapters: the server has to swap while it runs."""

    adapters: tuple[AdapterPlan, ...]
    base: str = "embedded"
    adapter_slots: int = 2
    rank: int = 16
    learning_rate: float = 2e-3
    train_rows: int = 3000
    train_steps: int = 300
    held_out_rows: int = 50
    shown_rows_per_adapter: int = 2
    concurrent_requests: int = 16
    throughput_rows: int = 8
    throughput_tokens: int = 96
    throughput_rounds: int = 3
    train_seed: int = 1
    held_out_seed: int = 2

    @property
    def tenants(self) -> tuple[str, ...]:
        """The owners of the adapters, each once."""
        return tuple(dict.fromkeys(adapter.tenant for adapter in self.adapters))


def full_plan() -> DemoPlan:
    """What `loraplex demo` does: about six minutes on two cores."""
    owners = {"text2sql": ("acme", None), "log2json": ("acme", "prod"), "text2cron": ("globex", None)}
    return DemoPlan(adapters=tuple(AdapterPlan(task, *owners[task.name]) for task in TASKS))


def quick_plan() -> DemoPlan:
    """The same way on less data: what the test suite runs. The adapters learn less."""
    return replace(
        full_plan(),
        train_rows=1000,
        train_steps=90,
        held_out_rows=16,
        shown_rows_per_adapter=1,
        throughput_rounds=1,
        throughput_tokens=32,
    )
