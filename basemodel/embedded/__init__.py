"""The embedded base: a small decoder-only chat model, its weights (`weights/`) and the recipe that makes them.

Does not import torch by itself. Retrain with `python -m basemodel.embedded.train` (see RECIPE.md).
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Folder in the standard Hugging Face layout: load it with AutoModelForCausalLM and AutoTokenizer."""
