"""What the demo does, in numbers: which adapters it trains for whom, on how much data, and how it measures them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from loraplex.demo.tasks import DemoTask, task_named


@dataclass(frozen=True)
class AdapterPlan:
    """One adapter: the task that it learns and for how long, the tenant that owns it, and its alias, if any.

    `answer_tokens` is the most that anybody may answer, and somewhat more than the longest right answer has.
    """

    task: DemoTask
    tenant: str
    train_steps: int
    batch_tokens: int
    answer_tokens: int
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
    learning_rate: float = 8e-3
    train_rows: int = 6000
    validation_rows: int = 60
    validations: int = 4
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
    return DemoPlan(
        adapters=(
            AdapterPlan(task_named("text2sql"), "acme", train_steps=450, batch_tokens=512, answer_tokens=72),
            AdapterPlan(
                task_named("log2json"), "acme", train_steps=340, batch_tokens=512, answer_tokens=112, alias="prod"
            ),
            AdapterPlan(task_named("text2cron"), "globex", train_steps=500, batch_tokens=512, answer_tokens=24),
        )
    )


def quick_plan() -> DemoPlan:
    """The same way with a third of the steps and fewer questions: what the test suite runs. The adapters learn less."""
    plan = full_plan()
    return replace(
        plan,
        adapters=tuple(replace(adapter, train_steps=adapter.train_steps // 3) for adapter in plan.adapters),
        train_rows=2000,
        validations=1,
        held_out_rows=16,
        shown_rows_per_adapter=1,
        throughput_rounds=1,
        throughput_tokens=32,
    )
