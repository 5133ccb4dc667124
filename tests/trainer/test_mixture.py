"""A mixture: its product against PEFT, its gate against the server's router, and a run from experts to a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from basemodel import mixture_gate
from basemodel.errors import AdapterFormatError
from basemodel.load import load_base
from basemodel.mixture_gate import read_mixture
from basemodel.score_table import RouterState, ScoreTable
from registry.manifest import parse_manifest
from registry.opening import open_registry
from registry.principal import Principal
from serving.messages import AdapterUse
from tests.engine.workbench import make_engine
from tests.trainer.workshop import VOCABULARY, Bench, animal_rows, assert_in_eight_bits, write_rows
from trainer import job_sections
from trainer.batches import collate
from trainer.checkpoint import adapter_tensors
from trainer.data import read_job_data
from trainer.errors import CheckpointError, InterruptedRunError, JobError, MethodError
from trainer.evaluate import answerable, completion_loss, exact_match
from trainer.events import Event, PhaseStarted, StepDone
from trainer.forward import summed_loss
from trainer.gate import Gate, running_mean
from trainer.gate_start import begin_gate, best_experts
from trainer.job import Job
from trainer.job_sections import MixtureSection
from trainer.loop import run_job
from trainer.mixture_product import LearnedMixture
from trainer.origins import digest_of_folder, gathered_origins
from trainer.preparation import PreparedRun, prepare_run
from trainer.result import TrainingResult

OPERATOR = Principal.operator()


@pytest.fixture(scope="module")
def specialists(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, trainer_home: Path) -> tuple[Path, Path]:
    """Two adapters over the tiny base that do different things, of different ranks and modules."""
    bench = Bench(tmp_path_factory.mktemp("specialists"), tiny_base, trainer_home)
    steps = {"max_steps": 12, "learning_rate": 2e-2}
    first = bench.run("first", adapter={"r": 8}, optimization=steps)
    write_rows(bench.train, [_backwards(row) for row in animal_rows(96, seed=5)])
    narrow = {"r": 3, "target_modules": ["q_proj", "down_proj"]}
    second = bench.run("second", adapter=narrow, optimization={**steps, "seed": 1})
    return first.adapter_folder, second.adapter_folder


def _backwards(row: dict[str, Any]) -> dict[str, Any]:
    question, answer = row["messages"]
    return {"messages": [question, {**answer, "content": answer["content"][::-1]}]}


def mixture_values(bench: Bench, experts: tuple[Path, ...], **sections: dict[str, Any]) -> dict[str, Any]:
    values = bench.values(
        adapter={"method": "switch"},
        mixture={"experts": [str(folder) for folder in experts], "train_experts": False},
    )
    values["base"]["quantization"] = "fp32"
    for key in ("r", "alpha"):
        values["adapter"].pop(key)
    values["optimization"].pop("learning_rate")
    for section, changes in sections.items():
        values.setdefault(section, {}).update(changes)
    return values


def prepared(bench: Bench, values: dict[str, Any]) -> PreparedRun:
    job = Job.from_values(values)
    with gathered_origins(job, bench.home / "registry") as origins:
        torch.manual_seed(0)
        return prepare_run(job, read_job_data(job), cache_dir=bench.home / "bases", origins=origins)


def trained_with(bench: Bench, values: dict[str, Any]) -> TrainingResult:
    return run_job(Job.from_values(values), home=bench.home, registry=bench.folder / "registry")


def test_the_limits_are_those_of_the_served_mixture() -> None:
    assert job_sections.MOST_EXPERTS == mixture_gate.MOST_EXPERTS
    assert job_sections.FEWEST_EXPERTS == mixture_gate.FEWEST_EXPERTS


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_expert_that_is_chosen_alone_computes_as_peft_does(bench: Bench, specialists: tuple[Path, Path]) -> None:
    from peft import PeftModel  # after basemodel, as trainer.tuners explains

    run = prepared(bench, mixture_values(bench, specialists))
    assert run.switch is not None
    token_ids = torch.randint(2, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(3))
    run.model.eval()
    for place, folder in enumerate(specialists):
        base = load_base(str(bench.base), mode="fp32", cache_dir=bench.home / "bases")
        stock = PeftModel.from_pretrained(base.model, folder).eval()
        with torch.no_grad(), run.switch.gate.only(place):
            expected = stock(input_ids=token_ids).logits
            torch.testing.assert_close(run.model(input_ids=token_ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gate", [{"gate_context": "token"}, {}, {"gate_decay": 0.8}])
@pytest.mark.parametrize("top_k", [1, 2])
def test_training_and_serving_choose_alike(
    bench: Bench, specialists: tuple[Path, Path], gate: dict[str, Any], top_k: int
) -> None:
    """The weights with gradients are those of the served router, and so is the loss."""
    run = prepared(bench, mixture_values(bench, specialists, mixture={**gate, "top_k": top_k}))
    assert run.switch is not None
    batch = collate(run.train.examples[:5], run.device)
    run.model.train()
    learned_loss = summed_loss(run.model, batch)
    learned = run.switch.gate.weights.detach().view(*batch.token_ids.shape, 2)
    run.model.eval()
    with torch.no_grad():
        served_loss = summed_loss(run.model, batch)
    table = ScoreTable(run.switch.gate.mixture("", ("a", "b")), run.base.model.get_input_embeddings().weight)
    for row, tokens in enumerate(batch.row_tokens):
        experts, weights, _ = table.route(batch.token_ids[row, :tokens].numpy(), RouterState())
        expected = np.zeros((tokens, 2), dtype=np.float32)
        np.put_along_axis(expected, experts, weights, axis=1)
        torch.testing.assert_close(learned[row, :tokens], torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
        served = run.switch.gate.weights.view(*batch.token_ids.shape, 2)[row, :tokens]
        assert np.array_equal(served.numpy(), expected)
    torch.testing.assert_close(learned_loss.detach(), served_loss, rtol=1e-4, atol=1e-4)


def test_the_product_has_the_gradients_of_its_formula() -> None:
    torch.manual_seed(0)
    result, x = torch.randn(2, 3, 7), torch.randn(2, 3, 5)
    a, b, weights = torch.randn(6, 5), torch.randn(7, 6), torch.rand(6, 3)
    owner = torch.tensor([0, 0, 1, 2, 2, 2])
    inputs = [tensor.double().requires_grad_() for tensor in (result, x, a, b, weights)]

    def plain(result: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return result + ((x @ a.T) * w[:, owner].view(2, 3, 6)) @ b.T

    expected = torch.autograd.grad(plain(*inputs).sin().sum(), inputs)
    out = LearnedMixture.apply(*inputs, owner)
    torch.testing.assert_close(out, plain(*inputs))
    for found, wanted in zip(torch.autograd.grad(out.sin().sum(), inputs), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_gradient_reaches_the_expert_that_was_not_chosen() -> None:
    torch.manual_seed(0)
    gate = Gate(3, torch.randn(50, 16), MixtureSection(experts=("./a", "./b", "./c"), top_k=1))
    decoder = torch.nn.Identity()
    gate.watch(decoder)
    decoder(torch.arange(10).view(1, 10))
    assert ((gate.weights > 0).sum(dim=1) == 1).all()
    gate.weights[:, 2].sum().backward()
    assert gate.weight.grad is not None
    assert (gate.weight.grad[2] != 0).any()


def test_the_spread_is_one_where_even_and_grows_with_preference() -> None:
    gate = Gate(
        4, torch.randn(50, 16), MixtureSection(experts=("./a", "./b", "./c", "./d"), gate_context="token", top_k=2)
    )
    decoder = torch.nn.Identity()
    gate.watch(decoder)
    token_ids = torch.arange(20).view(2, 10)
    decoder(token_ids)
    even = gate.balance((10, 10)).item()
    assert 0.9 < even < 1.3
    with torch.no_grad():
        gate.bias[:2] += 50
    decoder(token_ids)
    assert gate.balance((10, 10)).item() == pytest.approx(2.0, abs=0.01)
    with torch.no_grad():  # what stands in the padding counts for nothing
        gate.bias.zero_()
    decoder(torch.cat([token_ids, torch.full((2, 30), 7)], dim=1))
    assert gate.balance((10, 10)).item() == pytest.approx(even, rel=1e-6)


@pytest.mark.parametrize("decay", [None, 0.7])
def test_the_mean_with_gradients_is_the_mean(decay: float | None) -> None:
    scores = torch.randn(2, 6, 3, dtype=torch.float64)
    factor = decay or 1.0
    for last, mean in enumerate(running_mean(scores, decay).unbind(1)):
        shares = factor ** torch.arange(last, -1, -1, dtype=torch.float64)
        expected = (scores[:, : last + 1] * shares[:, None]).sum(1) / shares.sum()
        torch.testing.assert_close(mean, expected)


def test_answers_in_a_padded_batch_are_those_of_the_rows_alone(bench: Bench, specialists: tuple[Path, Path]) -> None:
    """Generation pads at the left and goes on from a cache: the gate must see neither."""
    values = mixture_values(bench, specialists, mixture={"top_k": 2})
    run = prepared(bench, values)
    assert run.switch is not None
    with torch.no_grad():
        run.switch.gate.weight.mul_(20)  # so that a wrong context is another choice
    rows = answerable(run.validation, most=8)
    done: list[int] = []
    together = exact_match(run.model, run.base.tokenizer, rows, on_rows=done.append)
    alone = [exact_match(run.model, run.base.tokenizer, [row], on_rows=done.append) for row in rows]
    assert together == pytest.approx(sum(alone) / len(alone))
    prompt = rows[0].token_ids[: rows[0].answer_start].astype(np.int64)
    token_ids = torch.from_numpy(prompt)[None]
    run.model.eval()
    with torch.no_grad():
        generated = run.model.generate(input_ids=token_ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
        expected = token_ids
        for _ in range(6):
            logits = run.model(input_ids=expected, use_cache=False).logits[:, -1]
            expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generated, expected)


def test_the_gate_learns_whom_to_ask_and_experts_stay_as_they_are(bench: Bench, specialists: tuple[Path, Path]) -> None:
    """Rows of the first expert's task alone: the gate must come to choose it."""
    values = mixture_values(bench, specialists, optimization={"max_steps": 20}, evaluation={"exact_match": True})
    before = prepared(bench, values)
    result = trained_with(bench, values)
    assert result.adapter_metrics is not None
    assert result.adapter_metrics.validation_loss < completion_loss(
        before.model, before.validation, before.validation_limit
    )
    shares = [expert.share for expert in result.experts]
    assert shares[0] is not None
    assert shares[0] > 0.8
    assert [expert.folder for expert in result.experts] == list(specialists)
    mixture = read_mixture(result.adapter_folder)
    assert mixture.experts == tuple(digest_of_folder(folder) for folder in specialists)
    assert mixture.base_fingerprint == result.base.fingerprint
    names = ["README.md", "gate.safetensors", "loraplex.json", "loraplex_mixture.json"]
    assert sorted(path.name for path in result.adapter_folder.iterdir()) == names
    manifest, document = parse_manifest((result.adapter_folder / "loraplex.json").read_bytes())
    assert len(manifest.probes) == 3
    assert document["training"]["method"] == "switch"
    assert [expert["digest"] for expert in document["training"]["mixture"]["experts"]] == list(mixture.experts)
    assert set(document["metrics"]["adapter"]) == {"validation_loss", "perplexity", "exact_match"}
    assert "a gate chooses 1 of 2" in (result.adapter_folder / "README.md").read_text()
    assert not (result.run_folder / "experts").exists()


@pytest.mark.parametrize("gate", [{"gate_context": "token"}, {"gate_decay": 0.9}])
def test_the_engine_serves_what_was_trained(bench: Bench, specialists: tuple[Path, Path], gate: dict[str, Any]) -> None:
    """From the exported folder, probes and all: the same greedy answers as in the trainer."""
    values = mixture_values(bench, specialists, mixture={**gate, "top_k": 2})
    result = trained_with(bench, values)
    run = prepared(bench, values)
    assert run.switch is not None
    run.switch.gate.take(read_mixture(result.adapter_folder))
    run.model.eval()
    rows = [row.token_ids[: row.answer_start].tolist() for row in run.validation[:3]]
    base = load_base(str(bench.base), mode="fp32", cache_dir=bench.home / "bases")
    recorder = make_engine(base)
    experts = tuple(AdapterUse(digest=each.digest, folder=str(each.folder)) for each in result.experts)
    use = AdapterUse(digest="sha256:mixture", folder=str(result.adapter_folder), experts=experts)
    for number, prompt in enumerate(rows):
        recorder.ask_many(str(number), prompt, (use,), max_tokens=6)
    recorder.run()
    for number, prompt in enumerate(rows):
        with torch.no_grad():
            answer = run.model.generate(
                input_ids=torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=None
            )
        assert recorder.last[str(number)].finish_reason == "length", recorder.last[str(number)]
        assert recorder.tokens[str(number)] == answer[0, len(prompt) :].tolist()


def test_a_center_changes_what_is_learned_and_not_what_is_served() -> None:
    torch.manual_seed(0)
    embedding, center = torch.randn(50, 16), torch.randn(16)
    section = MixtureSection(experts=("./a", "./b"))
    plain, centered = Gate(2, embedding, section), Gate(2, embedding, section, center=center)
    centered.take(plain.mixture("", ("a", "b")))
    served = [gate.mixture("", ("a", "b")) for gate in (plain, centered)]
    torch.testing.assert_close(served[0].bias, served[1].bias, rtol=0, atol=1e-5)
    assert not torch.equal(plain.bias, centered.bias)


def test_a_gate_begins_with_the_expert_that_is_best_at_a_row(bench: Bench, specialists: tuple[Path, Path]) -> None:
    """The same questions, answered as the first expert answers and as the second does, which begins otherwise."""
    rows = animal_rows(12, seed=8)
    others = [_backwards({"messages": [{**turn} for turn in row["messages"]]}) for row in rows]
    for row in others:
        row["messages"][0]["content"] = "bzz bzz " + row["messages"][0]["content"]
    write_rows(bench.validation, [*rows, *others])
    run = prepared(bench, mixture_values(bench, specialists))
    assert run.switch is not None
    gate, examples = run.switch.gate, run.validation
    best = best_experts(run.model, gate, examples, run.validation_limit)
    assert (best[:12] == 0).all()
    assert (best[12:] == 1).float().mean() > 0.8
    begin_gate(run.model, gate, examples, run.validation_limit)
    table = gate.table()
    for example, expert in zip(examples, best.tolist(), strict=True):
        chosen, _, _ = table.route(example.token_ids.astype(np.int64), RouterState())
        assert (chosen[example.is_label, 0] == expert).all()


def test_a_run_over_given_experts_begins_so_and_one_with_fresh_ones_does_not(
    bench: Bench, specialists: tuple[Path, Path]
) -> None:
    once = {"max_steps": 1}
    still = mixture_values(bench, specialists, mixture={"gate_learning_rate": 1e-9}, optimization=once)
    shares = [expert.share for expert in trained_with(bench, still).experts]
    assert shares[0] is not None
    assert shares[0] > 0.99
    fresh = {"new_experts": 1, "train_experts": False}
    values = mixture_values(bench, specialists, mixture=fresh, output={"run": bench.folder / "fresh"})
    events: list[Event] = []
    values["optimization"] |= once
    result = run_job(Job.from_values(values), home=bench.home, on_event=events.append)
    assert not any(isinstance(event, PhaseStarted) and "Asking" in event.title for event in events)
    document = json.loads((result.adapter_folder / "loraplex.json").read_text())
    assert document["training"]["job"]["mixture"]["gate_learning_rate"] == 0.05


def test_only_what_shall_train_changes(bench: Bench, specialists: tuple[Path, Path]) -> None:
    values = mixture_values(bench, specialists)
    assert set(adapter_tensors(prepared(bench, values).model)) == {"gate.weight", "gate.bias"}
    more = mixture_values(bench, specialists, mixture={"new_experts": 1}, adapter={"r": 4, "alpha": 4.0})
    fresh = {name for name in adapter_tensors(prepared(bench, more).model) if not name.startswith("gate.")}
    assert fresh
    assert all(".expert2." in name for name in fresh)
    all_of_them = mixture_values(bench, specialists, mixture={"train_experts": True})
    names = adapter_tensors(prepared(bench, all_of_them).model)
    assert {name.split(".expert")[1][0] for name in names if not name.startswith("gate.")} == {"0", "1"}


def test_experts_that_train_become_folders_with_their_parents(bench: Bench, specialists: tuple[Path, Path]) -> None:
    values = mixture_values(
        bench,
        specialists,
        mixture={"train_experts": True, "new_experts": 1, "top_k": 2},
        adapter={"r": 4, "alpha": 8.0, "dtype": "bfloat16"},
        optimization={"max_steps": 4, "learning_rate": 1e-2},
    )
    result = trained_with(bench, values)
    parents = []
    for number, expert in enumerate(result.experts, start=1):
        assert expert.folder == result.run_folder / "experts" / str(number)
        assert expert.digest == digest_of_folder(expert.folder)
        document = json.loads((expert.folder / "loraplex.json").read_text())
        parents.append(document["parent"])
        assert len(document["probes"]) == 3
    assert parents == [*(digest_of_folder(folder) for folder in specialists), None]
    assert read_mixture(result.adapter_folder).experts == tuple(expert.digest for expert in result.experts)
    with open_registry(bench.folder / "reg") as registry:
        registry.register_base(result.base.to_json())
        for expert in result.experts:
            assert expert.folder is not None
            version = registry.publish(expert.folder, f"acme/{expert.folder.name}e", principal=OPERATOR)
            assert version.digest == expert.digest


@pytest.mark.parametrize("given_train", [True, False])
def test_experts_that_train_are_rounded_and_the_mixture_is_evaluated_with_them(
    bench: Bench, specialists: tuple[Path, Path], given_train: bool
) -> None:
    """Reloaded, experts and gate give the loss that was reported; the gate and experts that stay are not rounded."""
    values = mixture_values(
        bench,
        specialists,
        mixture={"train_experts": given_train, "new_experts": 1, "top_k": 2},
        adapter={"r": 4, "alpha": 8.0, "dtype": "int8"},
        optimization={"max_steps": 8, "learning_rate": 1e-2},
    )
    result = trained_with(bench, values)
    folders = [expert.folder for expert in result.experts if expert.folder is not None]
    for folder in folders if given_train else folders[2:]:
        assert_in_eight_bits(folder)
    if not given_train:
        assert folders[:2] == list(specialists)
    served = read_mixture(result.adapter_folder)
    assert not torch.equal(served.weight, served.weight.bfloat16().float())
    again = mixture_values(
        bench,
        tuple(folders),
        mixture={"top_k": 2},
        output={"run": bench.folder / "again"},
        optimization={"max_steps": 8},
    )
    run = prepared(bench, again)
    assert run.switch is not None
    run.switch.gate.take(served)
    assert result.adapter_metrics is not None
    assert completion_loss(run.model, run.validation, run.validation_limit) == pytest.approx(
        result.adapter_metrics.validation_loss, rel=1e-6
    )


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_resumed_mixture_equals_the_uninterrupted_one_to_the_bit(
    bench: Bench, specialists: tuple[Path, Path], stop_after: int
) -> None:
    def values(run: str) -> dict[str, Any]:
        return mixture_values(
            bench,
            specialists[:1],
            mixture={"new_experts": 1, "top_k": 2},
            adapter={"r": 4, "alpha": 8.0},
            optimization={"max_steps": 6, "learning_rate": 1e-2, "gradient_accumulation": 2},
            output={"run": bench.folder / run},
        )

    whole = trained_with(bench, values("whole"))
    steps: list[StepDone] = []
    job = Job.from_values(values("parts"))
    with pytest.raises(InterruptedRunError):
        run_job(
            job,
            home=bench.home,
            on_event=lambda event: steps.append(event) if isinstance(event, StepDone) else None,
            should_stop=lambda: len(steps) == stop_after,
        )
    parts = run_job(job, home=bench.home, resume=True)
    for name in ("gate.safetensors", "loraplex_mixture.json"):
        if name.startswith("gate"):
            assert (whole.adapter_folder / name).read_bytes() == (parts.adapter_folder / name).read_bytes()
    for one, other in zip(whole.experts, parts.experts, strict=True):
        assert one.folder is not None
        assert other.folder is not None
        weights = "adapter_model.safetensors"
        assert (one.folder / weights).read_bytes() == (other.folder / weights).read_bytes()


def test_a_run_is_not_resumed_with_other_experts(bench: Bench, specialists: tuple[Path, Path], tmp_path: Path) -> None:
    copy = tmp_path / "expert"
    copy.mkdir()
    for file in specialists[1].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    job = Job.from_values(mixture_values(bench, (specialists[0], copy)))
    with pytest.raises(InterruptedRunError):
        run_job(job, home=bench.home, should_stop=lambda: True)
    (copy / "README.md").write_text("another version")
    with pytest.raises(CheckpointError, match="the adapters are not the versions"):
        run_job(job, home=bench.home, resume=True)


def test_published_experts_are_found_by_name_and_named_by_digest(bench: Bench, specialists: tuple[Path, Path]) -> None:
    place = bench.folder / "registry"
    base = load_base(str(bench.base), mode="fp32", cache_dir=bench.home / "bases").description
    with open_registry(place) as registry:
        registry.register_base(base.to_json())
        versions = [
            registry.publish(folder, f"acme/{name}", principal=OPERATOR)
            for folder, name in zip(specialists, ("one", "two"), strict=True)
        ]
        registry.promote("acme/two@1", "prod", principal=OPERATOR)
    values = mixture_values(bench, (), mixture={"experts": ["acme/one", "acme/two@prod"]})
    result = run_job(Job.from_values(values), home=bench.home, registry=place)
    assert [expert.name for expert in result.experts] == ["acme/one@1", "acme/two@1"]
    assert [expert.digest for expert in result.experts] == [version.digest for version in versions]
    assert all(expert.folder is None for expert in result.experts)


@pytest.mark.parametrize(
    ("experts", "words"),
    [
        (["acme/none", "./x"], "is not to be had"),
        (["./nowhere", "./x"], "is no adapter folder"),
        (["{first}", "{first}/"], "are the same version"),
    ],
)
def test_experts_that_cannot_be_had_are_named_before_anything_is_loaded(
    bench: Bench, specialists: tuple[Path, Path], experts: list[str], words: str
) -> None:
    named = [expert.format(first=specialists[0]) for expert in experts]
    values = mixture_values(bench, (), mixture={"experts": named})
    with pytest.raises(JobError, match=words):
        trained_with(bench, values)
    assert not (bench.folder / "run").exists()


def test_an_expert_of_another_base_or_of_another_kind_is_refused(
    bench: Bench, specialists: tuple[Path, Path], tmp_path: Path
) -> None:
    values = mixture_values(bench, specialists)
    values["base"]["quantization"] = "nf4"
    with pytest.raises(MethodError, match="stands on base"):
        prepared(bench, values)
    copy = tmp_path / "expert"
    copy.mkdir()
    for file in specialists[0].iterdir():
        if file.name != "loraplex.json":
            (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "r": 4}))
    with pytest.raises((AdapterFormatError, JobError), match=r"rank"):
        prepared(bench, mixture_values(bench, (specialists[1], copy)))
