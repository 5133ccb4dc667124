"""The Hugging Face Hub protocol: any tool that can talk to the Hub talks to this registry, unchanged."""
