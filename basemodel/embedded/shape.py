"""The shape of the embedded base, and its Hugging Face configuration.

All in_features are multiples of 64 and all out_features multiples of 32, as the 4-bit kernels ask.
"""

from dataclasses import dataclass

from transformers import GenerationConfig, LlamaConfig

from basemodel.embedded.tokenizer import CONTEXT_TOKENS, DOCUMENT, END, PAD, SPECIAL_TOKENS, VOCABULARY_TOKENS


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama decoder with tied embeddings."""

    vocabulary: int = VOCABULARY_TOKENS
    hidden: int = 256
    intermediate: int = 512
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5

    def config(self) -> LlamaConfig:
        """The same shape as transformers writes it."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_size,
            max_position_embeddings=CONTEXT_TOKENS,
            rms_norm_eps=self.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=True,
            bos_token_id=SPECIAL_TOKENS.index(DOCUMENT),
            eos_token_id=[SPECIAL_TOKENS.index(END), SPECIAL_TOKENS.index(DOCUMENT)],
            pad_token_id=SPECIAL_TOKENS.index(PAD),
            dtype="bfloat16",
        )


def generation_config() -> GenerationConfig:
    """Greedy by default; stops at the end of a turn or of a document."""
    return GenerationConfig(
        bos_token_id=SPECIAL_TOKENS.index(DOCUMENT),
        eos_token_id=[SPECIAL_TOKENS.index(END), SPECIAL_TOKENS.index(DOCUMENT)],
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        do_sample=False,
    )
