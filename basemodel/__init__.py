"""The one quantized base model and how adapters attach to it. Needs torch; knows no web and no database."""
