"""The card of an adapter: `README.md`, for people who meet it in a registry or on the Hub.

It does: say what the manifest says, in words and tables. It does not: measure or invent.
"""

from __future__ import annotations

from typing import Any

METRIC_TITLES = {"validation_loss": "validation loss", "perplexity": "perplexity", "exact_match": "exact match"}
SAVED_AS = {"int8": "bfloat16, in values that the loraplex server keeps in 8 bits"}
CONTEXTS = {"running_mean": "the text up to there", "token": "the token alone"}


def render_card(manifest: dict[str, Any], config: dict[str, Any]) -> str:
    """The Markdown text, with the front matter that the Hub reads."""
    base, training = manifest["base"], manifest["training"]
    data, job = training["data"], training["job"]
    mode, fingerprint = base["quantization"]["mode"], base["fingerprint"][:16]
    rows = f"{data['train_rows']} rows to train, {data['validation_rows']} to validate"
    return "\n".join(
        [
            *_front_matter(base["name"]),
            f"# {job['name']}",
            "",
            f"A LoRA adapter for **{base['name']}**, trained by loraplex with {training['method']}.",
            "",
            *_metrics(manifest["metrics"], data["validation_rows"]),
            "## Use",
            "",
            f"It stands on `{base['name']}` in {mode}, base fingerprint `{fingerprint}...`:",
            "the loraplex server checks that, and the probes in `loraplex.json`, when it loads the adapter.",
            "`peft.PeftModel.from_pretrained(model, folder)` loads it over the same base as well.",
            "",
            "## Training",
            "",
            "| | |",
            "|---|---|",
            f"| rank, alpha | {config['r']}, {config['lora_alpha']}{' (rsLoRA)' if config['use_rslora'] else ''} |",
            f"| modules | {', '.join(config['target_modules'])} |",
            f"| saved as | {SAVED_AS.get(job['adapter']['dtype'], job['adapter']['dtype'])} |",
            f"| data | {rows}, `{data['digest'][:23]}...` |",
            *([] if manifest["parent"] is None else [f"| goes on from | `{manifest['parent'][:23]}...` |"]),
            f"| steps | {training['steps']}, the adapter is of step {training['best_step']} |",
            f"| label tokens | {training['label_tokens']} |",
            f"| learning rate | {job['optimization']['learning_rate']:g}, {job['optimization']['schedule']} |",
            f"| seed | {training['seed']} |",
            f"| time | {training['seconds']:.0f} s on {training['hardware']} |",
            "",
            "Every setting, version and digest is in `loraplex.json`.",
            "",
        ]
    )


def render_mixture_card(manifest: dict[str, Any]) -> str:
    """The Markdown text of a mixture, whose experts are versions of their own."""
    base, training = manifest["base"], manifest["training"]
    data, job, mixture = training["data"], training["job"], training["mixture"]
    mode, fingerprint = base["quantization"]["mode"], base["fingerprint"][:16]
    experts = [
        f"| {expert['name']} | `{expert['digest'][:23]}...` | {'trained here' if expert['trained'] else 'as it was'} "
        f"| {_share(expert['share'])} |"
        for expert in mixture["experts"]
    ]
    return "\n".join(
        [
            *_front_matter(base["name"], library="loraplex", tags=("lora", "loraplex", "mixture")),
            f"# {job['name']}",
            "",
            f"A LoRA-Switch mixture for **{base['name']}**: a gate chooses {mixture['top_k']} of {len(experts)} LoRA",
            f"adapters for each token, by {CONTEXTS[mixture['context']]}. It was trained by loraplex.",
            "",
            *_metrics(manifest["metrics"], data["validation_rows"], column="mixture"),
            "| expert | digest | | share of the tokens |",
            "|---|---|---|---|",
            *experts,
            "",
            "## Use",
            "",
            f"It stands on `{base['name']}` in {mode}, base fingerprint `{fingerprint}...`, and is served by the",
            "loraplex server, which fetches the experts by their digests. PEFT and vLLM know no such mixtures.",
            "",
            "## Training",
            "",
            "| | |",
            "|---|---|",
            f"| data | {data['train_rows']} rows to train, {data['validation_rows']} to validate, "
            f"`{data['digest'][:23]}...` |",
            f"| steps | {training['steps']}, the mixture is of step {training['best_step']} |",
            f"| label tokens | {training['label_tokens']} |",
            f"| learning rate of the gate | {job['mixture']['gate_learning_rate']:g} |",
            f"| seed | {training['seed']} |",
            f"| time | {training['seconds']:.0f} s on {training['hardware']} |",
            "",
            "Every setting, version and digest is in `loraplex.json`.",
            "",
        ]
    )


def _front_matter(base_name: str, *, library: str = "peft", tags: tuple[str, ...] = ("lora", "loraplex")) -> list[str]:
    """A base with an owner is one of the Hub's, which links to it by `base_model`."""
    base = [f"base_model: {base_name}"] if "/" in base_name else []
    return ["---", *base, f"library_name: {library}", "tags:", *(f"- {tag}" for tag in tags), "---", ""]


def _metrics(metrics: dict[str, dict[str, float]], rows: int, *, column: str = "adapter") -> list[str]:
    if not metrics["adapter"]:
        return ["It was not measured: its run held out no rows for it.", ""]
    lines = [f"Measured on {rows} held-out rows:", "", f"| | base | {column} |", "|---|---|---|"]
    for key, title in METRIC_TITLES.items():
        if key in metrics["adapter"]:
            lines.append(
                f"| {title} | {_figure(key, metrics['base'][key])} | {_figure(key, metrics['adapter'][key])} |"
            )
    return [*lines, ""]


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _figure(key: str, value: float) -> str:
    return f"{value:.1%}" if key == "exact_match" else f"{value:.4g}"
