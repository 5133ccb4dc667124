"""A run learns, repeats, resumes to the bit, keeps the best, and leaves the base alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from basemodel.errors import BaseModelError
from basemodel.load import load_base
from registry.opening import open_registry
from registry.principal import Principal
from tests.trainer.workshop import Bench, animal_rows, events_of, make_tokenizer, write_rows
from trainer.batches import collate
from trainer.checkpoint import adapter_tensors
from trainer.data import read_job_data
from trainer.errors import CheckpointError, InterruptedRunError, NonFiniteLossError, RunFolderError
from trainer.evaluate import spread
from trainer.events import Event, Noticed, PhaseStarted, StepDone, StoppedEarly, TrainingStarted, Validated
from trainer.forward import summed_loss
from trainer.job import Job
from trainer.loop import run_job
from trainer.preparation import prepare_run

WEIGHTS = "adapter_model.safetensors"


def same_adapter(first: Path, second: Path) -> bool:
    return (first / WEIGHTS).read_bytes() == (second / WEIGHTS).read_bytes()


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_it_learns_the_task_that_the_base_does_not_know(bench: Bench, method: str) -> None:
    events: list = []
    result = bench.run(
        events=events,
        adapter={"method": method, "r": 16, "alpha": 32.0},
        optimization={"max_steps": 60, "learning_rate": 1e-2, "batch_tokens": 1024},
        evaluation={"exact_match": True, "every_steps": 20},
    )
    assert result.base_metrics is not None
    assert result.adapter_metrics is not None
    assert result.base_metrics.exact_match == 0
    assert result.adapter_metrics.exact_match is not None
    assert result.adapter_metrics.exact_match >= 0.9
    assert result.adapter_metrics.validation_loss < 0.2 * result.base_metrics.validation_loss
    losses = [event.loss for event in events_of(events, StepDone)]
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])
    assert result.plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads((result.run_folder / "summary.json").read_text())["metrics"]["adapter"]["exact_match"] >= 0.9


def test_equal_jobs_give_equal_bytes_and_another_seed_gives_others(bench: Bench) -> None:
    first, second = bench.run("first"), bench.run("second")
    other = bench.run("other", optimization={"seed": 1})
    assert same_adapter(first.adapter_folder, second.adapter_folder)
    assert not same_adapter(first.adapter_folder, other.adapter_folder)


def test_a_run_goes_on_from_an_adapter_and_names_its_parent(bench: Bench, tmp_path: Path) -> None:
    shape = {"r": 4, "alpha": 4.0, "target_modules": ["q_proj", "up_proj"], "rslora": True, "method": "qlora"}
    steps = {"max_steps": 12, "learning_rate": 1e-2}
    first = bench.run("first", adapter=shape, optimization=steps)
    values = bench.values("second", optimization={**steps, "learning_rate": 1e-3})
    values["adapter"] = {"method": "qlora", "init_from": str(first.adapter_folder)}
    values["base"].pop("quantization", None)
    events: list[Event] = []
    second = run_job(Job.from_values(values), home=bench.home, on_event=events.append)
    begun = events_of(events, Validated)[0]
    assert begun.step == 0
    assert first.adapter_metrics is not None
    assert begun.loss == pytest.approx(first.adapter_metrics.validation_loss, rel=1e-6)
    configs = [json.loads((run.adapter_folder / "adapter_config.json").read_text()) for run in (first, second)]
    assert configs[0] == configs[1]
    assert not same_adapter(first.adapter_folder, second.adapter_folder)
    manifest = json.loads((second.adapter_folder / "loraplex.json").read_text())
    with open_registry(tmp_path / "registry") as registry:
        registry.register_base(first.base.to_json())
        versions = [
            registry.publish(run.adapter_folder, "acme/animals", principal=Principal.operator())
            for run in (first, second)
        ]
        assert manifest["parent"] == versions[0].digest == versions[1].parent_digest
        named = {**values, "adapter": {"method": "qlora", "init_from": "acme/animals@1"}}
    again = run_job(Job.from_values(named), home=bench.home, registry=tmp_path / "registry", overwrite=True)
    assert same_adapter(again.adapter_folder, second.adapter_folder)
    assert str(bench.folder) not in (again.adapter_folder / "loraplex.json").read_text()


def test_the_caller_keeps_its_random_state(bench: Bench) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    bench.run()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("stop_after", [1, 4, 6, 8])
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(bench: Bench, stop_after: int) -> None:
    settings = {
        "adapter": {"method": "qlora", "dropout": 0.2, "target_modules": ["q_proj", "down_proj"]},
        "optimization": {"max_steps": 8, "gradient_accumulation": 2, "weight_decay": 0.1, "batch_tokens": 128},
    }
    whole = bench.run("whole", **settings)
    job, steps = bench.job("parts", **settings), []

    def listen(event: object) -> None:
        if isinstance(event, StepDone):
            steps.append(event)

    def stop() -> bool:
        return len(steps) == stop_after

    if stop_after < 8:
        with pytest.raises(InterruptedRunError) as stopped:
            run_job(job, home=bench.home, on_event=listen, should_stop=stop)
        assert stopped.value.step == stop_after
    else:  # killed after the last checkpoint, before the export
        run_job(job, home=bench.home, on_event=listen)
        (whole_of := bench.folder / "parts" / "summary.json").unlink()
        assert not whole_of.exists()
    resumed = run_job(job, home=bench.home, on_event=listen, resume=True)
    assert same_adapter(whole.adapter_folder, resumed.adapter_folder)
    assert [event.step for event in steps] == list(range(1, 9))
    assert resumed.final_loss == whole.final_loss
    assert resumed.adapter_metrics == whole.adapter_metrics
    assert resumed.best_step == whole.best_step
    assert resumed.label_tokens == whole.label_tokens


def test_resuming_refuses_another_job_other_data_and_nothing(bench: Bench) -> None:
    with pytest.raises(RunFolderError, match="holds no run to resume"):
        run_job(bench.job(), home=bench.home, resume=True)
    with pytest.raises(InterruptedRunError):
        run_job(bench.job(), home=bench.home, should_stop=lambda: True)
    with pytest.raises(CheckpointError, match=r"optimization\.learning_rate differs"):
        run_job(bench.job(optimization={"learning_rate": 1e-3}), home=bench.home, resume=True)
    with bench.train.open("a") as file:
        file.write(bench.train.read_text().splitlines()[0] + "\n")
    with pytest.raises(CheckpointError, match="data files have changed"):
        run_job(bench.job(), home=bench.home, resume=True)


def test_a_damaged_checkpoint_is_named(bench: Bench) -> None:
    with pytest.raises(InterruptedRunError):
        run_job(bench.job(), home=bench.home, should_stop=lambda: True)
    (state,) = (bench.folder / "run" / "checkpoints").glob("step-*/state.safetensors")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is damaged"):
        run_job(bench.job(), home=bench.home, resume=True)


def test_a_taken_run_folder_is_left_alone(bench: Bench) -> None:
    result = bench.run()
    before = (result.adapter_folder / WEIGHTS).read_bytes()
    with pytest.raises(RunFolderError, match="holds an earlier run"):
        bench.run(optimization={"seed": 4})
    assert (result.adapter_folder / WEIGHTS).read_bytes() == before
    with pytest.raises(BaseModelError):
        run_job(bench.job(base={"source": "nowhere/none"}), home=bench.home, overwrite=True)
    assert (result.adapter_folder / WEIGHTS).read_bytes() == before
    again = run_job(bench.job(optimization={"seed": 4}), home=bench.home, overwrite=True)
    assert (again.adapter_folder / WEIGHTS).read_bytes() != before
    stranger = bench.folder / "stranger"
    stranger.mkdir()
    (stranger / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="no run of ours"):
        run_job(bench.job("stranger"), home=bench.home, overwrite=True)
    assert (stranger / "thesis.txt").read_text() == "mine"


def test_a_run_that_began_meanwhile_is_left_alone(bench: Bench) -> None:
    """Two of one name that are started together: the second one finds out when its base is loaded."""
    kept = bench.folder / "run" / "checkpoints" / "step-00000001"

    def begin_another(event: object) -> None:
        if isinstance(event, PhaseStarted):
            kept.mkdir(parents=True)

    with pytest.raises(RunFolderError, match="began meanwhile"):
        run_job(bench.job(), home=bench.home, on_event=begin_another)
    assert kept.is_dir()


def test_a_run_that_fails_before_it_keeps_anything_does_not_hold_up_the_next(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError):
        bench.run(base={"source": str(_without_weights(tmp_path))})
    assert not (bench.folder / "run").exists()

    def fail(event: object) -> None:
        if isinstance(event, TrainingStarted):
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        run_job(bench.job(), home=bench.home, on_event=fail)
    assert not (bench.folder / "run").exists()
    bench.run()


def _without_weights(folder: Path) -> Path:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"none")
    return folder


def test_early_stopping_keeps_the_best_adapter(bench: Bench) -> None:
    events: list = []
    # A learning rate that soon overshoots: the loss falls first and rises later.
    result = bench.run(
        events=events,
        optimization={"max_steps": 60, "learning_rate": 0.05, "schedule": "constant", "warmup_ratio": 0.0},
        evaluation={"every_steps": 2, "early_stopping_patience": 2},
    )
    validations = [event for event in events_of(events, Validated) if event.step > 0]
    best = min(validations, key=lambda event: event.loss)
    assert result.stopped_early
    assert result.steps < 60
    assert events_of(events, StoppedEarly) == [StoppedEarly(result.steps, best.step)]
    assert result.best_step == best.step
    assert [event.patience_left for event in validations][-3:] == [2, 1, 0]
    assert result.adapter_metrics is not None
    assert result.adapter_metrics.validation_loss == best.loss


def test_accumulated_gradients_equal_those_of_one_batch(bench: Bench) -> None:
    """Rows of different lengths, one row a forward: the loss is the mean over label tokens, not the mean of means."""
    gradients = {}
    for name, rows, accumulation in (("one", 8, 1), ("four", 2, 4), ("eight", 1, 8)):
        section = {"batch_tokens": None, "batch_rows": rows, "gradient_accumulation": accumulation}
        job = bench.job(optimization=section)
        torch.manual_seed(0)
        run = prepare_run(job, read_job_data(job), cache_dir=bench.home / "bases")
        run.model.train()
        with torch.no_grad():
            for parameter in adapter_tensors(run.model).values():
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(9))
        chosen = [run.train.examples[index] for index in range(8)]
        groups = [chosen[start : start + rows] for start in range(0, 8, rows)]
        batches = [collate(group, run.device) for group in groups]
        label_tokens = sum(len(batch.targets) for batch in batches)
        for batch in batches:
            (summed_loss(run.model, batch) / label_tokens).backward()
        gradients[name] = {key: tensor.grad.clone() for key, tensor in adapter_tensors(run.model).items()}
    for key, expected in gradients["one"].items():
        for name in ("four", "eight"):
            torch.testing.assert_close(gradients[name][key], expected, rtol=1e-4, atol=1e-7, msg=f"{name} {key}")


def test_accumulation_in_the_loop_equals_the_larger_batch(bench: Bench) -> None:
    """Rows of one length in file order do not matter: one epoch, one step, all rows."""
    rows = len(bench.train.read_text().splitlines())
    whole: list = []
    parts: list = []
    section = {"max_steps": 1, "batch_tokens": None, "learning_rate": 1e-3}
    one = bench.run("one", events=whole, optimization={**section, "batch_rows": rows})
    many = bench.run(
        "many", events=parts, optimization={**section, "batch_rows": 12, "gradient_accumulation": rows // 12}
    )
    (first,), (second,) = events_of(whole, StepDone), events_of(parts, StepDone)
    assert second.loss == pytest.approx(first.loss, rel=1e-5)
    assert second.grad_norm == pytest.approx(first.grad_norm, rel=1e-4)
    expected, found = (load_file(result.adapter_folder / WEIGHTS) for result in (one, many))
    close = [torch.isclose(found[name], expected[name], atol=2e-5).float().mean().item() for name in expected]
    assert min(close) > 0.99  # Adam's first step is the sign of a gradient: where that is near 0 it may differ


def test_no_byte_of_the_base_changes_and_no_gradient_reaches_it(bench: Bench) -> None:
    job = bench.job(adapter={"method": "qlora"})
    untouched = load_base(job.base.source, mode="nf4", cache_dir=bench.home / "bases").model.state_dict()
    torch.manual_seed(0)
    run = prepare_run(job, read_job_data(job), cache_dir=bench.home / "bases")
    run.model.train()
    for planned in list(run.plan.iterate(done=0))[:3]:
        batch = collate([run.train.examples[index] for index in planned.batches[0]], run.device)
        summed_loss(run.model, batch).backward()
        run.optimizer.step()
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for name, tensor in run.model.state_dict().items()
        if "lora_" not in name
    }
    assert set(after) == set(untouched)
    for name, tensor in untouched.items():
        assert torch.equal(after[name], tensor), name
    assert all(tensor.grad is None for name, tensor in run.model.named_parameters() if "lora_" not in name)
    assert any(tensor.grad.abs().sum() > 0 for tensor in adapter_tensors(run.model).values())


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(bench: Bench) -> None:
    """One letter of the base is broken, and one row has it."""
    broken = bench.folder / "broken"
    shutil.copytree(bench.base, broken)
    weights = load_file(broken / "model.safetensors")
    (letter,) = make_tokenizer()("Z", add_special_tokens=False)["input_ids"]
    weights["model.embed_tokens.weight"][letter] = float("inf")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    rows = animal_rows(40, seed=1)
    rows[7]["messages"][0]["content"] += " Z"
    write_rows(bench.train, rows)
    settings = {"batch_rows": 1, "batch_tokens": None, "max_steps": 40}
    with pytest.raises(NonFiniteLossError) as error:
        bench.run(base={"source": str(broken)}, optimization=settings, evaluation={"every_steps": 1})
    assert error.value.what == "loss"
    assert f"step {error.value.step}: the loss is nan" in str(error.value)
    assert "optimization.learning_rate" in str(error.value)
    (newest,) = (bench.folder / "run" / "checkpoints").glob("step-*")
    assert newest.name == f"step-{error.value.step - 1:08d}"
    state = load_file(newest / "state.safetensors")
    assert all(tensor.isfinite().all() for name, tensor in state.items() if name.startswith("adapter."))


def test_gradient_checkpointing_changes_no_number(bench: Bench) -> None:
    events: list = []
    off = bench.run("off", optimization={"gradient_checkpointing": "off"})
    on = bench.run("on", events=events, optimization={"gradient_checkpointing": "on"})
    assert events_of(events, TrainingStarted)[0].gradient_checkpointing
    assert on.final_loss == pytest.approx(off.final_loss, rel=1e-5)


def test_without_validation_rows_the_last_step_is_kept_and_nothing_is_claimed(bench: Bench) -> None:
    values = bench.values(evaluation={"validation_fraction": 0.0})
    del values["evaluation"]["validation"]
    result = run_job(Job.from_values(values), home=bench.home)
    assert result.base_metrics is None
    assert result.adapter_metrics is None
    assert result.best_step == result.steps
    assert json.loads((result.adapter_folder / "loraplex.json").read_text())["metrics"] == {"base": {}, "adapter": {}}


def test_validation_rows_that_are_also_in_training_are_reported(bench: Bench) -> None:
    rows = bench.train.read_text().splitlines(keepends=True)
    bench.validation.write_text(bench.validation.read_text() + "".join(rows[:3]))
    events: list = []
    result = bench.run(events=events)
    assert any("also in the training file" in event.text for event in events_of(events, Noticed))
    manifest = json.loads((result.adapter_folder / "loraplex.json").read_text())
    assert manifest["training"]["data"]["validation_rows_also_in_training"] >= 3


def test_a_wish_to_stop_is_heard_while_measuring_and_resuming_repeats_no_step(bench: Bench) -> None:
    events: list[Event] = []

    def stop() -> bool:
        return any(isinstance(event, PhaseStarted) and event.title.startswith("Validation") for event in events)

    settings = {"evaluation": {"exact_match": True}}
    with pytest.raises(InterruptedRunError) as stopped:
        run_job(bench.job(**settings), home=bench.home, on_event=events.append, should_stop=stop)
    assert stopped.value.step == stopped.value.steps
    assert not (bench.folder / "run" / "adapter").exists()
    events.clear()
    resumed = run_job(bench.job(**settings), home=bench.home, on_event=events.append, resume=True)
    assert events_of(events, StepDone) == []
    assert same_adapter(resumed.adapter_folder, bench.run("whole", **settings).adapter_folder)


def test_rows_to_measure_are_spread_over_the_file() -> None:
    assert spread("abcdefghij", most=4) == ["a", "c", "f", "h"]
    assert spread("abc", most=9) == ["a", "b", "c"]
    assert spread([], most=3) == []
