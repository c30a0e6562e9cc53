"""Weights on disk: safetensors and GGUF files, their names, shapes and places."""
