"""Writes a random-weight model of `workload` and its adapters as GGUF files, the format of llama.cpp.

Run as a process of its own, with llama.cpp's `gguf-py` folder on PYTHONPATH:
`python -m benchmarks.llama_cpp_files --source FOLDER --model OUT.gguf [--adapters OUT_FOLDER FOLDER...]`
It does not: quantize (llama.cpp's own `llama-quantize` does) or write a usable tokenizer (prompts are token ids).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

ARCHITECTURE = "qwen2"
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def main() -> None:
    """Write the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    if not options.model.exists():
        write_model(options.source, options.model)
    if options.adapters:
        target, *folders = options.adapters
        target.mkdir(parents=True, exist_ok=True)
        for index, folder in enumerate(folders):
            write_adapter(folder, target / f"{index}.gguf")


def write_model(source: Path, target: Path) -> None:
    """The model in 16-bit floats, with a vocabulary of made-up words."""
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(target, ARCHITECTURE)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(_rope_theta(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    words = [f"<w{index}>" for index in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(words))
    writer.add_token_merges([f"{words[0]} {words[1]}"])
    writer.add_eos_token_id(0)
    for name, tensor in load_file(source / "model.safetensors").items():
        if name == "lm_head.weight":
            continue  # tied: the embedding is the output head
        dtype = np.float32 if tensor.dim() == 1 else np.float16
        writer.add_tensor(_gguf_name(name), tensor.to(torch.float32).numpy().astype(dtype))
    _finish(writer)


def write_adapter(folder: Path, target: Path) -> None:
    """A PEFT adapter."""
    if target.exists():
        return
    config = json.loads((folder / "adapter_config.json").read_text())
    writer = gguf.GGUFWriter(target, ARCHITECTURE)
    writer.add_type("adapter")
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(config["lora_alpha"]))
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        path, _, half = name.removeprefix("base_model.model.").rpartition(".lora_")
        letter = half.removesuffix(".weight").lower()
        writer.add_tensor(f"{_gguf_name(path + '.weight')}.lora_{letter}", tensor.to(torch.float16).numpy())
    _finish(writer)


def _gguf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{NAMES[module]}.{kind}"


def _rope_theta(config: dict[str, Any]) -> float:
    return float(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
