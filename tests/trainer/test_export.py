"""The adapter folder: stock PEFT loads it, its bytes are settled, it says where it comes from, and shows no machine."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from basemodel.adapter_weights import read_adapter
from basemodel.eight_bits import round_pair
from basemodel.kernels.library import has_cpu_kernels
from basemodel.load import load_base
from registry.manifest import parse_manifest
from tests.engine.workbench import make_engine
from tests.trainer.workshop import Bench, assert_in_eight_bits
from trainer.checkpoint import adapter_tensors
from trainer.data import read_job_data
from trainer.errors import ExportError
from trainer.evaluate import answerable, completion_loss, exact_match
from trainer.events import PhaseAdvanced, PhaseStarted
from trainer.export import export_adapter, round_to_saved_dtype
from trainer.preparation import PreparedRun, prepare_run
from trainer.result import TrainingResult

TRAINED = {"max_steps": 30, "learning_rate": 1e-2, "batch_tokens": 512}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, trainer_home: Path) -> TrainingResult:
    """One finished QLoRA run, read by several tests."""
    bench = Bench(tmp_path_factory.mktemp("trained"), tiny_base, trainer_home)
    return bench.run(
        adapter={"method": "qlora", "rslora": True}, optimization=TRAINED, evaluation={"exact_match": True}
    )


def manifest_of(result: TrainingResult) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((result.adapter_folder / "loraplex.json").read_text())
    return document


def stock_model(result: TrainingResult, home: Path, base: Path, mode: Any = "nf4") -> PeftModel:
    """What anybody gets who loads the folder with PEFT alone, over the same quantized base."""
    loaded = load_base(str(base), mode=mode, cache_dir=home / "bases")
    return PeftModel.from_pretrained(loaded.model, result.adapter_folder).eval()


def assert_probes_hold(result: TrainingResult, model: PeftModel, *, tolerance: float) -> None:
    for probe in manifest_of(result)["probes"]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([probe["prompt_token_ids"]])).logits[0, -1].float()
        expected = torch.tensor(probe["logits"])
        torch.testing.assert_close(logits[torch.tensor(probe["token_ids"])], expected, rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_stock_peft_gives_the_logits_of_the_probes(
    trained: TrainingResult, trainer_home: Path, tiny_base: Path
) -> None:
    model = stock_model(trained, trainer_home, tiny_base)
    assert_probes_hold(trained, model, tolerance=0.07)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(1.5)
    with pytest.raises(AssertionError):
        assert_probes_hold(trained, model, tolerance=0.07)


def prepared_with(bench: Bench, folder: Path, **sections: dict[str, Any]) -> PreparedRun:
    """A run that is about to begin, with the adapter of a folder in its model."""
    job = bench.job("again", **sections)
    run = prepare_run(job, read_job_data(job), cache_dir=bench.home / "bases")
    saved = load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for name, parameter in adapter_tensors(run.model).items():
            parameter.copy_(saved[name.replace(".default", "")])
    return run


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("dtype", "saved"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16"), ("int8", "bfloat16")],
)
def test_every_dtype_is_evaluated_as_it_is_saved(bench: Bench, dtype: str, saved: str) -> None:
    result = bench.run(adapter={"dtype": dtype})
    tensors = load_file(result.adapter_folder / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{saved}"}
    assert_probes_hold(result, stock_model(result, bench.home, bench.base, "fp32"), tolerance=1e-4)
    run = prepared_with(bench, result.adapter_folder)
    assert result.adapter_metrics is not None
    assert completion_loss(run.model, run.validation, run.validation_limit) == result.adapter_metrics.validation_loss


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_int8_rounds_each_pair_to_its_grid_and_peft_reads_the_same_values(bench: Bench, method: str) -> None:
    steps = {"max_steps": 12, "learning_rate": 1e-2}
    exact = bench.run("exact", adapter={"method": method, "r": 6}, optimization=steps)
    result = bench.run(adapter={"method": method, "r": 6, "dtype": "int8"}, optimization=steps)
    assert_in_eight_bits(result.adapter_folder)
    with pytest.raises(AssertionError):
        assert_in_eight_bits(exact.adapter_folder)
    trained = load_file(exact.adapter_folder / "adapter_model.safetensors")
    stock = stock_model(result, bench.home, bench.base, "fp32" if method == "lora" else "nf4")
    read = {name.replace(".default", ""): tensor for name, tensor in stock.named_parameters() if "lora_" in name}
    assert set(read) == set(trained)
    for name in [name for name in trained if "lora_A" in name]:
        names = name, name.replace("lora_A", "lora_B")
        for half, expected in zip(names, round_pair(*(trained[half] for half in names)), strict=True):
            assert torch.equal(read[half], expected), half
            assert 0.003 < (expected - trained[half]).norm() / expected.norm() < 0.02, half
    assert manifest_of(result)["training"]["job"]["adapter"]["dtype"] == "int8"
    cards = [(run.adapter_folder / "README.md").read_text() for run in (exact, result)]
    assert "| saved as | float32 |" in cards[0]
    assert "| saved as | bfloat16, in values that the loraplex server keeps in 8 bits |" in cards[1]


@pytest.mark.skipif(not has_cpu_kernels(), reason="the CPU kernels are not built, or not for this CPU")
def test_the_server_keeps_what_int8_trained_in_a_byte_each(bench: Bench) -> None:
    """By any scale: that of rsLoRA is no power of two."""
    sections: dict[str, Any] = {"method": "qlora", "rslora": True, "r": 6}
    rounded = bench.run("rounded", adapter={**sections, "dtype": "int8"})
    plain = bench.run("plain", adapter={**sections, "dtype": "bfloat16"})
    base = load_base(str(bench.base), mode="nf4", cache_dir=bench.home / "bases")
    weights = make_engine(base).engine.runner.sites.weights
    kept = [
        read_adapter(run.adapter_folder, base.description, torch.float32, weights).modules for run in (rounded, plain)
    ]
    assert [{pair.a.dtype for pair in each.values()} for each in kept] == [{torch.int8}, {torch.bfloat16}]


def test_the_folder_holds_four_files_and_the_config_names_the_base(trained: TrainingResult) -> None:
    folder = trained.adapter_folder
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "loraplex.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-llama"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (8, 16, True)
    assert config["inference_mode"] is True
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert set(file.keys()) == {
            f"base_model.model.model.layers.{layer}.{part}.lora_{half}.weight"
            for layer in (0, 1)
            for part in (
                *(f"self_attn.{name}_proj" for name in "qkvo"),
                *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
            )
            for half in "AB"
        }


def test_the_manifest_is_complete_and_the_registry_reads_it(trained: TrainingResult) -> None:
    manifest = manifest_of(trained)
    parse_manifest((trained.adapter_folder / "loraplex.json").read_bytes())
    assert set(manifest) == {"schema", "base", "training", "metrics", "parent", "probes"}
    assert manifest["base"] == {
        "name": "tiny-llama",
        "revision": None,
        "fingerprint": trained.base.fingerprint,
        "quantization": {"mode": "nf4", "block_size": 64, "double_quantization": True, "compute_dtype": "bfloat16"},
    }
    training = manifest["training"]
    assert (training["method"], training["seed"], training["steps"]) == ("qlora", 0, 30)
    assert training["best_step"] == trained.best_step
    assert training["label_tokens"] == trained.label_tokens > 0
    assert training["seconds"] > 0
    assert "cores" in training["hardware"]
    assert set(training["versions"]) == {
        "python", "loraplex", "torch", "transformers", "peft", "bitsandbytes", "safetensors", "tokenizers"
    }  # fmt: skip
    assert training["data"]["digest"].startswith("sha256:")
    assert (training["data"]["train_rows"], training["data"]["validation_rows"]) == (96, 16)
    assert set(training["data"]["files"]) == {"train", "validation"}
    assert training["job"]["optimization"]["learning_rate"] == 1e-2
    assert set(training["job"]) == {"name", "base", "data", "adapter", "optimization", "evaluation", "output"}
    for side in ("base", "adapter"):
        assert set(manifest["metrics"][side]) == {"validation_loss", "perplexity", "exact_match"}
        loss = manifest["metrics"][side]["validation_loss"]
        assert manifest["metrics"][side]["perplexity"] == pytest.approx(math.exp(loss))
    assert manifest["parent"] is None


def test_the_probes_are_eight_best_logits_of_prompts_that_are_no_data(trained: TrainingResult) -> None:
    manifest = manifest_of(trained)
    assert len(manifest["probes"]) == 3
    for probe in manifest["probes"]:
        assert len(probe["token_ids"]) == len(probe["logits"]) == 8
        assert probe["logits"] == sorted(probe["logits"], reverse=True)
        assert len(probe["prompt_token_ids"]) <= trained.base.context_tokens


def test_nothing_in_the_folder_shows_this_machine(trained: TrainingResult, tiny_base: Path, trainer_home: Path) -> None:
    for path in trained.adapter_folder.iterdir():
        content = path.read_bytes()
        for private in (trained.run_folder, tiny_base, trainer_home, Path.home()):
            assert str(private).encode() not in content, path.name


def test_the_card_says_what_was_measured(trained: TrainingResult) -> None:
    card = (trained.adapter_folder / "README.md").read_text()
    assert trained.adapter_metrics is not None
    assert f"{trained.adapter_metrics.exact_match:.1%}" in card
    assert trained.base.fingerprint[:16] in card
    assert card.startswith("---\nlibrary_name: peft\n")


def test_exporting_twice_gives_equal_bytes_and_a_path_in_it_is_refused(bench: Bench) -> None:
    job = bench.job()
    run = prepare_run(job, read_job_data(job), cache_dir=bench.home / "bases")
    manifest = manifest_of(bench.run("other"))

    def export(name: str, dtype: str = "float32", private: tuple[Path, ...] = ()) -> Path:
        target = bench.folder / name
        export_adapter(
            run.model, target, dtype=dtype, base=run.base.description, manifest=manifest, private_paths=private
        )
        return target

    one, two = export("one"), export("two")
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {
        path.name: path.read_bytes() for path in two.iterdir()
    }
    manifest["training"]["hardware"] = str(bench.folder / "machine")
    with pytest.raises(ExportError, match="would show the path"):
        export("three", private=(bench.folder,))
    assert not (bench.folder / "three").exists()
    assert sorted(path.name for path in bench.folder.iterdir() if path.name.startswith(".")) == []
    with torch.no_grad():
        next(iter(adapter_tensors(run.model).values()))[0, 0] = 1e30
    with pytest.raises(ExportError, match="not finite"):
        export("four", dtype="float16")
    with torch.no_grad():
        next(iter(adapter_tensors(run.model).values()))[0, 0] = math.nan
    round_to_saved_dtype(run.model, "int8")  # a grid has no such value: it must not become a zero
    with pytest.raises(ExportError, match="not finite"):
        export("five", dtype="int8")


def test_exact_match_counts_greedy_answers_and_a_batch_equals_its_rows(bench: Bench) -> None:
    events: list = []
    result = bench.run(
        events=events,
        optimization=TRAINED,
        evaluation={"exact_match": True, "exact_match_rows": 10},
    )
    phases = [event for event in events if isinstance(event, PhaseStarted) and "Exact match" in event.title]
    assert [phase.total for phase in phases] == [10, 10]
    assert [event.done for event in events if isinstance(event, PhaseAdvanced)] == [10, 10]
    run = prepared_with(bench, result.adapter_folder, optimization=TRAINED)
    rows = answerable(run.validation, most=10)
    done: list[int] = []
    together = exact_match(run.model, run.base.tokenizer, rows, on_rows=done.append)
    alone = [exact_match(run.model, run.base.tokenizer, [row], on_rows=done.append) for row in rows]
    assert together == pytest.approx(sum(alone) / len(alone))
    assert result.adapter_metrics is not None
    assert together == result.adapter_metrics.exact_match
    assert completion_loss(run.model, run.validation, run.validation_limit) == pytest.approx(
        result.adapter_metrics.validation_loss, rel=1e-6
    )
