"""The fast paths of a step against their plain references: the head, the adapter's product, attention's gradient."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import Gemma2Config, GPT2Config, PretrainedConfig, Qwen3Config

from basemodel.four_bit import Linear4bit
from basemodel.load import Base, load_base
from tests.trainer.workshop import CONTEXT_TOKENS, VOCABULARY, save_base, tiny_llama
from trainer.attention import Float32Gradient, use_float32_gradient
from trainer.batches import Batch
from trainer.checkpoint import adapter_tensors
from trainer.errors import MethodError
from trainer.estimate import activation_bytes, wants_checkpointing
from trainer.forward import label_logits, summed_loss
from trainer.job import Job
from trainer.job_sections import AdapterSection
from trainer.lora_product import LearnedProduct, served_product
from trainer.methods import attach_adapter, short_names, target_modules
from trainer.tuners import LoraConfig, PeftModel, with_adapter

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT_TOKENS,
    "initializer_range": 0.1,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": tiny_llama(),
    "tied": tiny_llama(tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL),
    "gemma2": Gemma2Config(**SMALL, sliding_window=6, query_pre_attn_scalar=16, final_logit_softcapping=5.0),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=CONTEXT_TOKENS,
        eos_token_id=0,
        bos_token_id=0,
    ),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def base_of(folder: Path, family: str, mode: Any = "fp32") -> Base:
    source = folder / family
    if not source.exists():
        save_base(source, FAMILIES[family])
    return load_base(str(source), mode=mode, cache_dir=folder / "bases")


def adapted(base: Base, **section: Any) -> PeftModel:
    """A model with an adapter that does something."""
    torch.manual_seed(0)
    model = attach_adapter(base, AdapterSection(**section), checkpointing=False)
    with torch.no_grad():
        for parameter in adapter_tensors(model).values():
            parameter.normal_(std=0.08)
    return model


def batch_of(rows: int = 3, tokens: int = 12) -> Batch:
    token_ids = torch.randint(2, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(rows, tokens, dtype=torch.bool)
    labels[0, 3:5], labels[rows // 2, 1], labels[-1, tokens - 1] = True, True, True
    flat = labels.flatten().nonzero().flatten()
    return Batch(token_ids, flat - 1, token_ids.flatten()[flat], (tokens,) * rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_label_positions_equal_those_of_the_whole_forward(bases: Path, family: str) -> None:
    model, batch = adapted(base_of(bases, family)), batch_of()
    with torch.no_grad():
        whole = model(input_ids=batch.token_ids, use_cache=False).logits.flatten(0, 1)
        torch.testing.assert_close(label_logits(model, batch), whole[batch.positions], rtol=1e-5, atol=1e-5)
        again = model(input_ids=batch.token_ids, use_cache=False).logits.flatten(0, 1)
    assert torch.equal(again, whole), "the hook must be gone"


def test_padding_at_the_right_changes_nothing(bases: Path) -> None:
    model, batch = adapted(base_of(bases, "llama")), batch_of(rows=1)
    padded = Batch(F.pad(batch.token_ids, (0, 7)), batch.positions, batch.targets, batch.row_tokens)
    torch.testing.assert_close(summed_loss(model, padded), summed_loss(model, batch), rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("rslora", [False, True])
def test_over_a_float32_base_the_product_and_its_gradients_equal_peft(bases: Path, family: str, rslora: bool) -> None:
    batch, losses, gradients = batch_of(), {}, {}
    for kind in ("ours", "peft"):
        base = base_of(bases, family)
        if kind == "ours":
            model = adapted(base, r=4, alpha=6.0, rslora=rslora)
        else:
            modules = short_names(base.model, target_modules(base, AdapterSection()))
            config = LoraConfig(
                r=4, lora_alpha=6, use_rslora=rslora, target_modules=modules, fan_in_fan_out=family == "gpt2"
            )
            torch.manual_seed(0)
            model = with_adapter(base.model, config)
            with torch.no_grad():
                for parameter in adapter_tensors(model).values():
                    parameter.normal_(std=0.08)
        model.train()
        loss = summed_loss(model, batch)
        loss.backward()
        losses[kind] = loss.item()
        gradients[kind] = {name: tensor.grad for name, tensor in adapter_tensors(model).items()}
    assert losses["ours"] == pytest.approx(losses["peft"], rel=1e-6)
    assert set(gradients["ours"]) == set(gradients["peft"])
    for name, expected in gradients["peft"].items():
        torch.testing.assert_close(gradients["ours"][name], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_the_products_gradients_pass_a_numeric_check() -> None:
    torch.manual_seed(0)
    shapes = ((2, 3, 5), (2, 3, 4), (2, 4), (5, 2))
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    class Exact(LearnedProduct):
        """The parameters' gradients are float32 in training; here they must keep all digits."""

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
            result = LearnedProduct.backward(ctx, *gradients)
            return (*result[:2], result[2].double(), result[3].double(), None)

    torch.autograd.gradcheck(lambda *inputs: Exact.apply(*inputs, 1.7), tensors, eps=1e-3, atol=1e-3)


def test_judged_and_learned_products_agree() -> None:
    torch.manual_seed(0)
    result, x, a, b = torch.randn(2, 3, 5), torch.randn(2, 3, 4), torch.randn(2, 4), torch.randn(5, 2)
    expected = result + 1.7 * (x @ a.T @ b.T)
    torch.testing.assert_close(served_product(result, x, a, b, 1.7), expected)
    torch.testing.assert_close(LearnedProduct.apply(result, x, a, b, 1.7), expected)
    rounded = served_product(result.bfloat16(), x.bfloat16(), a, b, 1.7)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), expected, rtol=0.03, atol=0.05)


def test_dropout_acts_in_training_alone(bases: Path) -> None:
    model, batch = adapted(base_of(bases, "llama"), dropout=0.5), batch_of()
    with torch.no_grad():
        model.train()
        assert not torch.equal(label_logits(model, batch), label_logits(model, batch))
        model.eval()
        assert torch.equal(label_logits(model, batch), label_logits(model, batch))


def test_the_four_bit_base_computes_the_same_in_training_and_eval_and_keeps_its_gradient(bases: Path) -> None:
    """The hazard of bitsandbytes on the CPU: an eval forward that repacks weights, after which nothing is learned."""
    base, batch = base_of(bases, "llama", "nf4"), batch_of()
    layers = [module for module in base.model.modules() if isinstance(module, Linear4bit)]
    assert layers
    assert all(layer.support_avx512bf16_for_cpu is False for layer in layers)
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    model = adapted(base, method="qlora")
    model.train()
    training = label_logits(model, batch).detach()
    before = [layer(x if layer.in_features == 64 else F.pad(x, (0, 64))).detach() for layer in layers]
    with torch.no_grad():
        model.eval()
        judged = label_logits(model, batch)
        after = [layer(x if layer.in_features == 64 else F.pad(x, (0, 64))) for layer in layers]
    assert all(torch.equal(first, second) for first, second in zip(before, after, strict=True))
    # The adapter's own product is rounded to bfloat16 in training: logits of up to 10 differ by hundredths.
    torch.testing.assert_close(judged.float(), training.float(), rtol=0.02, atol=0.06)
    model.train()
    assert torch.equal(label_logits(model, batch).detach(), training)
    summed_loss(model, batch).backward()
    for name, tensor in adapter_tensors(model).items():
        assert tensor.grad is not None, name
        assert tensor.grad.abs().sum() > 0, name


def test_an_adapter_that_was_not_trained_changes_no_bit_of_the_base(bases: Path) -> None:
    base, batch = base_of(bases, "llama", "nf4"), batch_of()
    with torch.no_grad():
        expected = base.model(batch.token_ids, use_cache=False).logits
        model = attach_adapter(base, AdapterSection(), checkpointing=False)
        for mode in (True, False):
            model.train(mode)
            assert torch.equal(model(input_ids=batch.token_ids, use_cache=False).logits, expected)


def test_attention_keeps_its_values_and_has_a_gradient_closer_to_the_truth() -> None:
    torch.manual_seed(0)
    exact = [torch.randn(2, 4, 9, 16, requires_grad=True) for _ in range(3)]
    short = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    plain = [tensor.detach().clone().requires_grad_() for tensor in short]

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    ours, theirs, truth = Float32Gradient.apply(*short, attend), attend(*plain), attend(*exact)
    assert torch.equal(ours, theirs)
    weight = torch.randn(2, 4, 9, 16)
    for output in (ours, theirs, truth):
        (output.float() * weight).sum().backward()
    for mine, other, right in zip(short, plain, exact, strict=True):
        scale = right.grad.abs().max()
        assert (mine.grad.float() - right.grad).abs().max() < 0.03 * scale
        assert (mine.grad.float() - right.grad).norm() <= 1.05 * (other.grad.float() - right.grad).norm()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_attention_with_the_float32_gradient_changes_no_logit(bases: Path, family: str) -> None:
    base, batch = base_of(bases, family, "bf16"), batch_of()
    with torch.no_grad():
        expected = base.model(batch.token_ids, use_cache=False).logits
    chosen = use_float32_gradient(base.model)
    assert chosen == (base.model.config._attn_implementation != "eager")
    assert torch.equal(base.model(batch.token_ids, use_cache=False).logits, expected)


def test_a_float32_base_keeps_its_attention(bases: Path) -> None:
    assert not use_float32_gradient(base_of(bases, "llama").model)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_every_linear_layer_but_the_head(bases: Path, family: str) -> None:
    base = base_of(bases, family)
    modules = target_modules(base, AdapterSection())
    head = base.model.get_output_embeddings()
    linear = {
        name
        for name, module in base.model.named_modules()
        if module is not head and type(module).__name__ in ("Linear", "Conv1D")
    }
    assert set(modules) == linear
    names = short_names(base.model, modules)
    assert names == sorted(names)
    assert len(names) < len(modules)


def test_target_modules_by_name_and_ending(bases: Path) -> None:
    base = base_of(bases, "llama")
    chosen = target_modules(base, AdapterSection(target_modules=("v_proj", "model.layers.1.mlp.up_proj")))
    assert chosen == [
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    assert short_names(base.model, chosen) == chosen, "an ending that means more modules must not be used"
    model = adapted(base, target_modules=("v_proj", "model.layers.1.mlp.up_proj"))
    assert len(adapter_tensors(model)) == 6


@pytest.mark.parametrize(
    ("name", "words"),
    [("q_porj", "Did you mean 'q_proj'?"), ("embed_tokens", "is an embedding"), ("proj", "no linear layer")],
)
def test_a_module_that_is_not_there_is_named(bases: Path, name: str, words: str) -> None:
    with pytest.raises(MethodError, match=words.replace("?", r"\?")):
        target_modules(base_of(bases, "llama"), AdapterSection(target_modules=(name,)))


def test_an_adapter_on_the_output_head_trains(bases: Path) -> None:
    model, batch = adapted(base_of(bases, "llama"), target_modules=("lm_head",)), batch_of()
    model.train()
    summed_loss(model, batch).backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in adapter_tensors(model).values())


def test_checkpointing_is_chosen_by_the_job_or_by_the_estimate(bases: Path) -> None:
    base = base_of(bases, "llama")
    modules = target_modules(base, AdapterSection())

    def chosen(choice: str, batch_tokens: int) -> bool:
        job = Job.from_values({"data": {"train": "x.jsonl"}, "optimization": {"gradient_checkpointing": choice}})
        return wants_checkpointing(job, base, modules, batch_tokens=batch_tokens)

    assert chosen("on", 1)
    assert not chosen("off", 10**9)
    assert not chosen("auto", 2048)
    assert chosen("auto", 10**9)
    assert activation_bytes(base, modules, batch_tokens=2) == 2 * activation_bytes(base, modules, batch_tokens=1)


def test_no_step_warns(bases: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = adapted(base_of(bases, "llama", "nf4"), dropout=0.1)
        model.train()
        summed_loss(model, batch_of()).backward()
