"""The embedded default: its task, its tokenizer and its warm start."""
