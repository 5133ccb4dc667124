"""What training scripts do with a Hub, by stock peft and transformers: `python libraries.py WORK_FOLDER`.

Run as a process of its own, because the libraries read HF_ENDPOINT when they are imported. WORK_FOLDER/plan.json names
the registry's folder, where the first version is promoted in between. Prints one JSON object per feature.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

PEFT_REPO, TRAINER_REPO = "acme/by-peft", "acme/by-trainer"
TOKENS = torch.arange(12).reshape(1, 12)


def write_base(folder: Path) -> None:
    """A Llama of random weights, with the shapes of the registry's tiny base."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def with_adapter(base: Path) -> PeftModel:
    """The base with a LoRA adapter that changes its output."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return adapted.eval()


def push_with_peft(base: Path, registry_folder: str) -> None:
    """model.push_to_hub makes a version, and PeftModel.from_pretrained finds it by the alias it was promoted to."""
    import registry

    model = with_adapter(base)
    model.push_to_hub(PEFT_REPO, private=True)
    with registry.open(Path(registry_folder)) as opened:
        opened.promote(f"{PEFT_REPO}@1", "prod", principal=registry.Principal.operator())
    other = with_adapter(base)
    other.push_to_hub(PEFT_REPO, commit_message="second")
    for revision, pushed in (("prod", model), ("main", other)):
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), PEFT_REPO, revision=revision)
        assert torch.equal(loaded(TOKENS).logits, pushed(TOKENS).logits), revision
    assert not torch.equal(model(TOKENS).logits, other(TOKENS).logits)
    virtual = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), f"{PEFT_REPO}.at.prod")
    assert torch.equal(virtual(TOKENS).logits, model(TOKENS).logits)


def push_with_trainer(base: Path, work: Path) -> None:
    """Trainer.push_to_hub after two steps: training_args.bin stays away, the adapter becomes a version."""
    arguments = TrainingArguments(
        output_dir=str(work / "out"),
        max_steps=2,
        per_device_train_batch_size=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        push_to_hub=True,
        hub_model_id=TRAINER_REPO,
        hub_private_repo=True,
        disable_tqdm=True,
    )
    rows = [{"input_ids": TOKENS[0], "labels": TOKENS[0]}] * 4
    trainer = Trainer(model=with_adapter(base), args=arguments, train_dataset=rows)
    trainer.train()
    trainer.push_to_hub(commit_message="After two steps")
    assert (work / "out" / "training_args.bin").exists()
    api = HfApi()
    files = api.list_repo_files(TRAINER_REPO)
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(files), files
    assert "training_args.bin" not in files
    assert [tag.name for tag in api.list_repo_refs(TRAINER_REPO).tags] == ["v1"]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), TRAINER_REPO, revision="v1")
    assert torch.equal(loaded(TOKENS).logits, trainer.model.eval()(TOKENS).logits)


def report(name: str, run: Callable[[], None]) -> None:
    """Run a feature, and say how it went."""
    try:
        run()
        failure = None
    except Exception:  # noqa: BLE001 - whatever it is, it is reported, and the next feature runs
        failure = traceback.format_exc()
    print(json.dumps({"feature": name, "failure": failure}), flush=True)


def main(work: Path) -> None:
    """Both libraries over one base."""
    plan = json.loads((work / "plan.json").read_text())
    base = work / "base"
    write_base(base)
    report("peft", lambda: push_with_peft(base, plan["registry"]))
    report("trainer", lambda: push_with_trainer(base, work))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
