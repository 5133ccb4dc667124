"""Grammars that an answer must follow: from what a client sends to something that llguidance can match."""
