"""The registry's commands, one file a subject. `loraplex/cli.py` composes them."""
