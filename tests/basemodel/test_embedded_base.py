"""The embedded base: what ships in weights/, and the recipe that makes it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from basemodel.embedded import WEIGHTS
from basemodel.embedded.corpus import EXERCISES, Mixture, conversations, library_documents, render, tokenize_documents
from basemodel.embedded.optimizer import Schedule
from basemodel.embedded.shape import Shape
from basemodel.embedded.tokenizer import END, SPECIAL_TOKENS, train_tokenizer
from basemodel.embedded.train import Plan, Run, export
from basemodel.embedded.trunk import Trunk

FILES = "chat_template.jinja config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(WEIGHTS).eval()


def test_files_and_size() -> None:
    assert sorted(path.name for path in WEIGHTS.iterdir()) == FILES.split()
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 10_000_000


def test_dimensions_suit_the_four_bit_kernels(model: LlamaForCausalLM) -> None:
    linears = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert len(linears) == 7 * model.config.num_hidden_layers + 1
    for name, layer in linears.items():
        assert layer.in_features % 64 == 0, name
        assert layer.out_features % 32 == 0, name
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_configuration_is_that_of_the_recipe(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    made = Shape().config()
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rope_parameters"):
        assert getattr(model.config, name) == getattr(made, name), name
    assert tokenizer.convert_ids_to_tokens(list(range(len(SPECIAL_TOKENS)))) == list(SPECIAL_TOKENS)
    assert set(model.generation_config.eos_token_id) == set(
        tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    )
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.eos_token == END


def test_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi\n"}]
    asked = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert asked == "<|system|>Be brief.<|end|><|user|> Hi\n<|end|><|assistant|>"
    answered = tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": "Yes"}], tokenize=False)
    assert answered == asked + "Yes<|end|>"
    ids = tokenizer(answered, add_special_tokens=False)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids) == answered
    with pytest.raises(Exception, match="unknown role"):
        tokenizer.apply_chat_template([{"role": "tool", "content": ""}], tokenize=False)


def test_conversations_render_as_the_template_does(tokenizer: PreTrainedTokenizerFast) -> None:
    for conversation in conversations(seed=5, count=100):
        assert render(conversation) == tokenizer.apply_chat_template(conversation, tokenize=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n\t  x\r\n",
        "def f(x):\n    return x[1:]  # ünï",
        "日本語 🎉 é\u0301 \u200f עברית",
        "\x00\x7f�",
        "a" * 300,
        "1234.50",
    ],
)
def test_tokenizer_round_trips(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_digits_stand_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("2026-11") == ["2", "0", "2", "6", "-", "1", "1"]


def test_generation_answers_and_stops(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [{"role": "user", "content": "Hello"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**ids, max_new_tokens=60)[0, ids["input_ids"].shape[1] :].tolist()
    assert made[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(made[:-1]).startswith("Hello")


def test_generation_copies_from_the_prompt(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [{"role": "user", "content": "As JSON: host=web-17; port=8080"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**ids, max_new_tokens=60)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(made, skip_special_tokens=True) == '{"host": "web-17", "port": 8080}'


def test_exercises_are_filled_and_hold_no_demo_task() -> None:
    assert len(EXERCISES) > 50
    for conversation in conversations(seed=9, count=2000):
        assert all(message["content"] for message in conversation if message["role"] == "user")
        text = render(conversation)
        assert "SELECT" not in text
        assert "* * *" not in text
        assert "cron" not in text.lower().split()


def test_library_split_is_disjoint() -> None:
    seen, unseen = library_documents(held_out=False), library_documents(held_out=True)
    assert len(unseen) > 5
    assert not {text for text in seen if text} & {text for text in unseen if text}


def test_trunk_equals_transformers(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trunk = Trunk(Shape())
    for weight in trunk.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    export(trunk, tokenizer, tmp_path / "weights")
    twin = AutoModelForCausalLM.from_pretrained(tmp_path / "weights", dtype=torch.float32)
    ids = torch.randint(6, 2048, (2, 40))
    labels = torch.randint(6, 2048, (2, 40))
    with torch.no_grad():
        ours = trunk(ids, torch.zeros_like(ids), labels)
        theirs = torch.nn.functional.cross_entropy(twin(ids).logits.transpose(1, 2), labels, reduction="none")
    assert (ours - theirs).abs().mean() < 0.02


def test_documents_in_a_row_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    trunk = Trunk(Shape())
    for weight in trunk.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    ids, document = torch.randint(6, 2048, (1, 32)), torch.arange(32)[None] // 16
    other = ids.clone()
    other[0, :16] = torch.randint(6, 2048, (16,))
    with torch.no_grad():
        first, second = trunk(ids, document, ids), trunk(other, document, ids)
    assert torch.equal(first[0, 16:], second[0, 16:])
    assert not torch.equal(first[0, :16], second[0, :16])


def test_rows_are_a_function_of_seed_and_step(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = tokenize_documents(tokenizer, library_documents(held_out=True)[:5])
    batch = Mixture(tokenizer, texts, seed=1).batch(step=3, rows=4, tokens=128)
    again = Mixture(tokenizer, texts, seed=1).batch(step=3, rows=4, tokens=128)
    assert torch.equal(batch.ids, again.ids)
    assert not torch.equal(batch.ids, Mixture(tokenizer, texts, seed=1).batch(step=4, rows=4, tokens=128).ids)
    counted = batch.weights > 0
    inside = batch.document[:, :-1] == batch.document[:, 1:]
    assert torch.equal(batch.labels[:, :-1][counted[:, :-1] & inside], batch.ids[:, 1:][counted[:, :-1] & inside])
    assert (batch.weights[1:] > 1).any()


def test_tokenizer_training_is_deterministic() -> None:
    texts = library_documents(held_out=True)[:3]
    first, second = train_tokenizer(texts), train_tokenizer(texts)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


@pytest.mark.long
def test_training_is_deterministic_and_goes_on_where_it_stopped(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    plan = Plan(Schedule(steps=4, decay_steps=2, warmup_steps=1), rows=4, row_tokens=64, long_steps=1, compiled=False)
    first = Run(plan, tokenizer)
    losses = [first.advance(), first.advance()]
    first.save(tmp_path / "checkpoint.pt")
    losses += [first.advance(), first.advance()]
    second = Run(plan, tokenizer)
    assert [second.advance() for _ in range(4)] == losses
    assert losses[-1] < losses[0]
    third = Run(plan, tokenizer)
    third.resume(tmp_path / "checkpoint.pt")
    assert [third.advance(), third.advance()] == losses[2:]
