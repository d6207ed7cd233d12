"""A row as a conversation: formats, digest, chat template."""
