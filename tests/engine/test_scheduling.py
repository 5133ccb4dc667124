"""Who waits how long, counted in steps: on the real queues, blocks and adapter pool, over a simulated device."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from serving.messages import AdapterUse
from tests.engine.simulation import Simulation


def longest_wait(simulation: Simulation, prompt: int, tenants: int) -> int:
    """Steps in which a tenant's only request has its first token, whatever the others do.

    Everything that can be in its way at once, one after the other: the reads that were begun before its own; then for
    each tenant that may be before it, the patience, the prompts of all that run, and their tokens until they give way;
    its own prompt, beside those of the others.
    """
    limits = simulation.scheduler.limits
    chunk = limits.prompt_tokens(limits.max_running)
    prompts = -(-limits.max_running * simulation.context // chunk)
    reads = 3 * (simulation.slow_disk_steps + 1) * tenants
    turn = limits.patience_steps + prompts + limits.patience_steps + limits.max_running
    return reads + tenants * turn + tenants * -(-prompt // chunk) + 2


# ------------------------------------------------------------------------------------------------------------- floods
def flood(simulation: Simulation, kind: str, dice: random.Random, number: int) -> None:
    """One more step of a hostile tenant."""
    name = f"flood{number}"
    most = simulation.context
    if kind == "long prompts":
        simulation.ask(name, "flood", most - 2, 2, salt=number)
    elif kind == "long answers":
        simulation.ask(name, "flood", 1, most - 1, salt=number)
    elif kind == "tiny requests":
        for index in range(4):
            simulation.ask(f"{name}.{index}", "flood", 1, 1, salt=number)
    elif kind == "many adapters":
        simulation.ask(name, "flood", 3, 40, f"flood{number % 50}r{dice.choice([1, 4, 8, 16, 32])}", salt=number)
    elif kind == "urgent":
        simulation.ask(name, "flood", 20, 60, priority=-1000, salt=number)
    elif kind == "leaves and comes back":
        for request in simulation.inside("flood"):
            if dice.random() < 0.5:
                simulation.abort(request.request_id)
        for index in range(3):
            simulation.ask(f"{name}.{index}", "flood", dice.randrange(1, 60), 60, salt=number)


FLOODS = ["long prompts", "long answers", "tiny requests", "many adapters", "urgent", "leaves and comes back"]


@pytest.mark.parametrize("kind", FLOODS)
@pytest.mark.parametrize("adapter", [None, "modestr8"])
def test_a_flood_keeps_nobody_waiting_beyond_the_bound(kind: str, adapter: str | None) -> None:
    simulation = Simulation(slow_disk_steps=2)
    dice = random.Random(kind)
    for number in range(60):
        flood(simulation, kind, dice, number)
        simulation.step()
    begin = simulation.step_number
    simulation.ask("modest", "modest", 30, 5, *([adapter] if adapter else []), salt=17)
    bound = longest_wait(simulation, 30, 2)
    while "modest" not in simulation.first_step:
        flood(simulation, kind, dice, simulation.step_number)
        simulation.step()
        assert simulation.step_number - begin <= bound, f"no token after {bound} steps"
    for request in simulation.inside("flood"):
        simulation.abort(request.request_id)
    simulation.run()
    assert simulation.answers["modest"] == simulation.expected("modest")


ASKED = st.tuples(
    st.sampled_from(["mallory", "eve"]),
    st.integers(1, 90),  # prompt
    st.integers(1, 38),  # answer
    st.sampled_from(["", "ar1", "br16", "cr32", "dr5", "er9"]),
    st.integers(-1000, 1000),
    st.integers(1, 3),  # copies
)
ACTIONS = st.lists(st.tuples(st.sampled_from(["ask", "ask", "abort", "pause"]), ASKED), min_size=5, max_size=60)


@given(before=ACTIONS, during=ACTIONS, own_adapter=st.sampled_from(["", "modestr4", "br16"]))
@settings(max_examples=25, deadline=None)
def test_no_sequence_of_requests_keeps_another_tenant_waiting_beyond_the_bound(
    before: list[tuple[str, tuple[str, int, int, str, int, int]]],
    during: list[tuple[str, tuple[str, int, int, str, int, int]]],
    own_adapter: str,
) -> None:
    """Two tenants do what they like, again and again, while a third waits for its first token."""
    simulation = Simulation(slow_disk_steps=1)
    asked = 0

    def act(kind: str, what: tuple[str, int, int, str, int, int]) -> None:
        nonlocal asked
        tenant, prompt, answer, adapter, priority, copies = what
        if kind == "abort":
            for request in list(simulation.inside(tenant))[::2]:
                simulation.abort(request.request_id)
        elif kind == "ask" and len(simulation.inside(tenant)) < 60:
            for _ in range(copies):
                asked += 1
                adapters = [adapter] if adapter else []
                drafts = asked % 3 * 3
                simulation.ask(
                    f"r{asked}", tenant, prompt, answer, *adapters, priority=priority, salt=asked, drafts=drafts
                )
        simulation.step()

    for action in before:
        act(*action)
    begin = simulation.step_number
    simulation.ask("modest", "modest", 30, 4, *([own_adapter] if own_adapter else []), salt=11)
    bound = longest_wait(simulation, 30, 3)
    while "modest" not in simulation.first_step:
        act(*during[simulation.step_number % len(during)])
        assert simulation.step_number - begin <= bound, f"no token after {bound} steps"
    simulation.run()
    assert not simulation.faults
    for name, answer in simulation.answers.items():
        assert answer == simulation.expected(name)


# -------------------------------------------------------------------------------------------------------------- shares
def test_two_busy_tenants_get_equal_shares() -> None:
    """One asks for long texts in floods, the other for short ones: after a while each has half of the tokens."""
    simulation = Simulation(max_running=6)
    for step in range(500):
        while len(simulation.inside("greedy")) < 40:
            simulation.ask(f"g{step}.{len(simulation.inside('greedy'))}", "greedy", 40, 80, salt=step)
        while len(simulation.inside("short")) < 8:
            simulation.ask(f"s{step}.{len(simulation.inside('short'))}", "short", 4, 6, salt=step)
        simulation.step()
    fair = simulation.scheduler.fair
    greedy, short = fair.tenant_served("greedy"), fair.tenant_served("short")
    assert 0.85 < greedy / short < 1.18, (greedy, short)


def test_a_busy_adapter_of_a_tenant_does_not_hold_up_its_quiet_one() -> None:
    simulation = Simulation(max_running=2)
    for index in range(40):
        simulation.ask(f"busy{index}", "acme", 10, 10, "busyr4", salt=index)
    simulation.step()
    simulation.ask("quiet", "acme", 10, 10, "quietr4", salt=99)
    simulation.run()
    order = sorted(simulation.first_step, key=simulation.first_step.__getitem__)
    assert order.index("quiet") <= 3, "it waited for the whole queue of another adapter"


def test_priorities_order_a_tenants_own_requests_and_nobody_elses() -> None:
    simulation = Simulation(max_running=1)
    simulation.ask("running", "acme", 4, 4)
    simulation.step()
    for index, priority in enumerate([5, 0, -3, 7]):
        simulation.ask(f"acme{priority}", "acme", 4, 4, priority=priority, salt=index)
    simulation.ask("other", "other", 4, 4, priority=1000, salt=30)
    simulation.run()
    order = sorted(simulation.first_step, key=simulation.first_step.__getitem__)
    assert [name for name in order if name.startswith("acme")] == ["acme-3", "acme0", "acme5", "acme7"]
    assert order.index("other") == 1, "another tenant's priority passed it"


def test_preemption_takes_the_least_urgent_of_a_tenant() -> None:
    """The cache is too small for three answers: the one with the largest number gives way, though it is the oldest."""
    simulation = Simulation(kv_blocks=14, max_running=3, patience=4)
    simulation.ask("later", "acme", 8, 30, priority=9, salt=1)
    simulation.ask("first", "acme", 8, 30, priority=0, salt=2)
    simulation.ask("second", "acme", 8, 30, priority=1, salt=3)
    simulation.run()
    assert simulation.scheduler.preemptions > 0
    assert simulation.last_step["first"] < simulation.last_step["second"] < simulation.last_step["later"]
    assert all(answer == simulation.expected(name) for name, answer in simulation.answers.items())


def test_leaving_and_coming_back_forgives_no_debt() -> None:
    simulation = Simulation(max_running=1)
    simulation.ask("steady0", "steady", 4, 400 - 300)
    simulation.ask("hopper", "hopper", 100, 20)
    while "hopper" not in simulation.last_step:
        simulation.step()
    debt = simulation.scheduler.fair.tenant_served("steady")
    simulation.ask("back", "hopper", 4, 4)
    assert simulation.scheduler.fair.tenant_served("hopper") > debt


# ---------------------------------------------------------------------------------------------------------------- gaps
@pytest.mark.parametrize("mixed_tokens", [16, 24, 32])
def test_prompts_never_stall_those_who_decode(mixed_tokens: int) -> None:
    """More rows decode than the budget of a step, and long prompts keep coming: each row has a token in every step
    (checked in `Simulation.step`), no step is larger than its bound, and prompts come forward all the same.
    """
    simulation = Simulation(max_running=40, kv_blocks=2000, mixed_tokens=mixed_tokens, context=400)
    for index in range(36):
        simulation.ask(f"talks{index}", f"t{index % 3}", 2, 300, salt=index)
    for _ in range(10):
        simulation.step()
    simulation.ask("long", "other", 320, 2, salt=40)
    begin = simulation.step_number
    while "long" not in simulation.first_step:
        rows = simulation.step()
        assert sum(row.count for row in rows) <= 36 + 16 + 1
    assert simulation.step_number - begin <= 320 // 16 + 1


def test_prompts_share_the_budget_fairly() -> None:
    """A tenant whose long prompts are being read does not hold up another's short one."""
    simulation = Simulation(max_running=6, kv_blocks=400, context=200)
    for index in range(5):
        simulation.ask(f"long{index}", "greedy", 190, 2, salt=index)
    simulation.step()
    simulation.ask("short", "modest", 20, 2, salt=9)
    begin = simulation.step_number
    while "short" not in simulation.first_step:
        simulation.step()
    assert simulation.step_number - begin <= 2
    simulation.run()


def test_prompts_cannot_wait_for_each_others_blocks() -> None:
    """Two prompts that fit one by one, but not together, both come to their end."""
    simulation = Simulation(kv_blocks=20, step_tokens=16, mixed_tokens=16, max_running=4)
    for index in range(6):
        simulation.ask(f"r{index}", "acme", 50, 10, salt=index)
    simulation.run()
    assert len(simulation.last_step) == 6
    assert not simulation.faults


# ------------------------------------------------------------------------------------------------------------ adapters
def test_more_adapters_in_flight_than_slots_are_served_in_turn() -> None:
    """Forty adapters over four slots, all asked for at once, each by its own tenant: nobody waits much longer than it
    takes to serve everybody four at a time.
    """
    simulation = Simulation(slots=4, rank_rows=64, max_running=8, slow_disk_steps=1)
    for index in range(40):
        for turn in range(2):
            simulation.ask(f"a{index}.{turn}", f"t{index}", 4, 6, f"a{index}r8", salt=index)
    simulation.run()
    assert len(simulation.last_step) == 80
    assert max(simulation.first_step.values()) <= 40 / 4 * (6 + simulation.patience)


def test_a_cold_adapter_does_not_wait_for_another_tenants_reads() -> None:
    simulation = Simulation(slow_disk_steps=5, max_running=4)
    for index in range(60):
        simulation.ask(f"flood{index}", "flood", 4, 4, f"f{index}r1", salt=index)
    simulation.step()
    simulation.ask("modest", "modest", 4, 4, "mr1", salt=77)
    while "modest" not in simulation.first_step:
        simulation.step()
    assert simulation.disk.reads.index("mr1") <= 6, simulation.disk.reads
    simulation.run()


@pytest.mark.parametrize("copies", [True, False])
def test_host_memory_keeps_to_its_budget_though_more_is_waited_for(copies: bool) -> None:
    budget = 40_000  # five adapters of rank 8
    simulation = Simulation(host_bytes=budget, slots=2, rank_rows=16, max_running=2, slow_disk_steps=2, copies=copies)
    for index in range(50):
        simulation.ask(f"r{index}", f"t{index % 3}", 4, 6, f"a{index % 20}r8", salt=index)
    simulation.run()
    assert len(simulation.last_step) == 50
    assert simulation.most_host_bytes <= budget
    assert len(simulation.disk.reads) <= 100, "adapters are read and dropped in turns"


def test_what_the_device_computes_where_it_lies_takes_nothing_of_host_memory() -> None:
    """Two adapters on the device and two in host memory are four that nobody reads again: the last used of them all."""
    simulation = Simulation(host_bytes=16_000, slots=2, rank_rows=16, max_running=2, copies=False)
    asked = [0, 1, 2, 3, 0, 1, 2, 3, 4, 3, 2, 4, 1, 0]
    for turn, number in enumerate(asked):
        simulation.ask(f"r{turn}", "acme", 2, 3, f"a{number}r8", salt=turn)
        simulation.run()
        simulation.engine.pool.collect(list)
        assert simulation.engine.pool.host_bytes <= 16_000
        assert len(simulation.engine.pool.host_digests) <= 4
        assert set(simulation.engine.pool.resident_digests) <= set(simulation.engine.pool.host_digests)
    assert simulation.disk.reads == [f"a{number}r8" for number in (0, 1, 2, 3, 4, 0)]
    assert simulation.engine.pool.device.evictions > 6


def test_a_large_adapter_gets_scattered_rows_together() -> None:
    """Free rows are enough but scattered between pinned adapters: these move, and nobody is preempted."""
    simulation = Simulation(slots=8, rank_rows=32, max_running=8)
    for index in range(4):
        simulation.ask(f"short{index}", "acme", 2, 3, f"short{index}r4", salt=index)
        simulation.ask(f"long{index}", "acme", 2, 60, f"long{index}r4", salt=10 + index)
    while len(simulation.last_step) < 4:
        simulation.step()
    simulation.ask("large", "acme", 2, 4, "larger16", salt=30)
    simulation.step()
    simulation.step()
    assert "large" in simulation.first_step
    assert simulation.engine.pool.device.moves > 0
    assert simulation.scheduler.preemptions == 0
    simulation.run()
    assert all(answer == simulation.expected(name) for name, answer in simulation.answers.items())


def test_an_adapter_that_gives_way_to_a_move_stays_the_last_used_in_host_memory() -> None:
    """Rows: idle (4), talks (4), 8 free. `large` needs 12, so `talks` moves to where the idle one lies."""
    simulation = Simulation(slots=4, rank_rows=16, max_running=4, copies=False)
    simulation.ask("idle", "acme", 2, 4, "idler4", salt=1)
    simulation.step()
    simulation.step()
    simulation.ask("talks", "acme", 2, 60, "talksr4", salt=2)
    while "idle" not in simulation.last_step or "talks" not in simulation.first_step:
        simulation.step()
    simulation.engine.preload(AdapterUse(digest="newerr1", folder=""))
    while "newerr1" not in simulation.engine.pool.host_digests:
        simulation.step()
    simulation.ask("large", "acme", 2, 4, "larger12", salt=3)
    while "large" not in simulation.first_step:
        simulation.step()
    pool = simulation.engine.pool
    assert pool.device.moves == pool.device.evictions == 1
    assert pool.host_digests.index("newerr1") < pool.host_digests.index("idler4")
    simulation.run()


def test_adapters_that_never_fit_together_are_refused() -> None:
    simulation = Simulation(slots=2, rank_rows=32)
    simulation.ask("many", "acme", 2, 2, "ar1", "br1", "cr1")
    simulation.ask("large", "acme", 2, 2, "dr20", "er20")
    simulation.ask("fits", "acme", 2, 2, "ar1", "br1")
    simulation.run()
    assert "2 slots" in simulation.faults["many"]
    assert "40 rank rows" in simulation.faults["large"]
    assert "fits" in simulation.first_step
    assert "fits" not in simulation.faults


def test_copying_adapters_is_bounded_while_others_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.engine.device_adapters.STEP_COPY_BYTES", 8_000)  # one adapter of rank 8
    simulation = Simulation(slots=8, rank_rows=64, max_running=9)
    simulation.ask("talks", "acme", 2, 60)
    simulation.step()
    for index in range(8):
        simulation.ask(f"r{index}", "acme", 2, 4, f"a{index}r8", salt=index)
    while len(simulation.first_step) < 9:
        placed = simulation.shelf.placed
        simulation.step()
        assert simulation.shelf.placed - placed <= 1
    simulation.run()


# ------------------------------------------------------------------------------------------------- in any order at all
NAMES = [f"{letter}r{rank}" for letter, rank in zip("abcdefgh", [1, 2, 4, 8, 8, 13, 16, 30], strict=True)]


class Upheaval(RuleBasedStateMachine):
    """Requests with any adapters come, run, leave; adapters are kept and preloaded; memory is short everywhere. After
    every step all accounts add up, and in the end every request has its answer, whole and right.
    """

    def __init__(self) -> None:
        super().__init__()
        self.simulation = Simulation(
            slots=3, rank_rows=32, kv_blocks=40, host_bytes=30_000, slow_disk_steps=1, patience=5
        )
        self.asked = 0
        self.left: set[str] = set()

    @rule(
        tenant=st.sampled_from("xyz"),
        adapters=st.lists(st.sampled_from(NAMES), max_size=3, unique=True),
        prompt=st.integers(1, 60),
        answer=st.integers(1, 40),
        priority=st.integers(-2, 2),
        drafts=st.sampled_from([0, 0, 4]),
    )
    def ask(self, tenant: str, adapters: list[str], prompt: int, answer: int, priority: int, drafts: int) -> None:
        self.asked += 1
        name = f"r{self.asked}"
        salt = self.asked % 3  # some share their prefixes
        self.simulation.ask(name, tenant, prompt, answer, *adapters, priority=priority, salt=salt, drafts=drafts)

    @rule(number=st.integers(0, 30))
    def abort(self, number: int) -> None:
        if f"r{number}" not in self.simulation.last_step:
            self.left.add(f"r{number}")
            self.simulation.abort(f"r{number}")

    @rule(kept=st.lists(st.sampled_from(NAMES), max_size=2, unique=True))
    def keep(self, kept: list[str]) -> None:
        self.simulation.engine.keep(AdapterUse(digest=digest, folder="") for digest in kept)

    @rule(digest=st.sampled_from(NAMES))
    def preload(self, digest: str) -> None:
        self.simulation.engine.preload(AdapterUse(digest=digest, folder=""))

    @rule(steps=st.integers(1, 12))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.simulation.step()

    def teardown(self) -> None:
        self.simulation.run()
        simulation = self.simulation
        assert all("slots" in fault or "rank rows" in fault for fault in simulation.faults.values()), simulation.faults
        for name in {f"r{number}" for number in range(1, self.asked + 1)} - self.left - set(simulation.faults):
            assert name in simulation.last_step, f"{name} was forgotten"
            assert simulation.answers[name] == simulation.expected(name)


TestUpheaval = Upheaval.TestCase
TestUpheaval.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


def test_a_kept_adapter_is_the_last_to_go_and_makes_nobody_wait() -> None:
    simulation = Simulation(slots=2, rank_rows=32, max_running=2, host_bytes=1)
    simulation.engine.keep([AdapterUse(digest="keptr8", folder="")])
    simulation.run()
    assert simulation.engine.pool.resident_digests == ["keptr8"], "it comes to the device while there is room"
    for index in range(6):
        simulation.ask(f"r{index}", "acme", 2, 3, f"a{index}r8", salt=index)
        simulation.run()
        assert "keptr8" in simulation.engine.pool.resident_digests
        assert "keptr8" in simulation.engine.pool.host_digests
    simulation.ask("all of them", "acme", 2, 3, "largerr30")
    simulation.run()
    assert simulation.answers["all of them"] == simulation.expected("all of them")
    simulation.engine.keep([])
    simulation.engine.pool.collect(list)
    assert "keptr8" not in simulation.engine.pool.host_digests
