"""Reads the weights of our checkpoints one tensor at a time, and saves weights as a checkpoint.

Only the parameters (`params/...`) of a training checkpoint are read, not optimizer and counters.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from polaris_jax.checkpoint import Checkpointer, CheckpointError
from polaris_jax.checkpoint.arrays import StreamedArray
from polaris_jax.config import ConfigError
from polaris_jax.models import ModelConfig, RopeScaling, param_shapes
from polaris_jax.models.weights.safetensors import Index
from polaris_jax.models.weights.tensors import (
    Weights,
    hf_shapes,
    hf_tensors,
    param_dtype,
    param_reader,
    to_hf,
)

_PREFIX = "params/"
_TOKEN_IDS = "token_ids"


class CheckpointWeights:
    """The tensors of one step by their Hugging Face names; see `models.weights.Weights`."""

    def __init__(self, checkpointer: Checkpointer, step: int) -> None:
        """Opens the parameters of a complete step.

        Raises:
            ConfigError: the step does not record its architecture.
            CheckpointError: the step is not complete, lacks a parameter, or has a parameter of
                another shape.
        """
        facts = checkpointer.facts(step)
        self._where = f"checkpoint {step} in {checkpointer.directory}"
        self.config = _architecture(facts["architecture"], self._where)
        self._tensors, self._shapes = hf_tensors(self.config), hf_shapes(self.config)
        self._dtypes: dict[str, np.dtype] = {}
        for path, shape in param_shapes(self.config).items():
            dtype, saved_shape = facts["arrays"].get(_PREFIX + path, (None, None))
            if dtype is None:
                raise CheckpointError(f"{self._where}: {_PREFIX}{path} is missing")
            if tuple(saved_shape) != shape:
                raise CheckpointError(
                    f"{self._where}: {_PREFIX}{path} has shape {tuple(saved_shape)}, but its "
                    f"architecture says {shape}"
                )
            self._dtypes[path] = np.dtype(dtype)
        names = [_PREFIX + path for path in self._dtypes]
        self._stores = checkpointer.open_arrays(step, names)
        #: Special ids of the config.json that the weights came from; empty for a training run's.
        self.token_ids: dict[str, int | None] = checkpointer.host(step).get(_TOKEN_IDS, {})

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._shapes[name]

    def dtype(self, name: str) -> np.dtype:
        """The saved parameter's dtype."""
        return self._dtypes[self._tensors[name][0]]

    def read(self, name: str, index: Index = None) -> np.ndarray:
        """A tensor's values. Only its layer is read, or the rows of a matrix [V, D].

        Raises:
            CheckpointError: the files cannot be read.
        """
        path, layer = self._tensors[name]
        store = self._stores[_PREFIX + path]
        try:
            if layer is None and index is not None:  # no axis of these tensors is merged or moved
                return store[tuple(index)].read().result()
            value = (store if layer is None else store[layer]).read().result()
        except (OSError, ValueError, RuntimeError) as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{self._where}: {path} cannot be read: {first_line}") from error
        tensor = to_hf(path, value)
        return tensor if index is None else tensor[index]


def save_weights(
    checkpointer: Checkpointer,
    config: ModelConfig,
    weights: Weights,
    *,
    dtype: np.dtype | None,
    token_ids: dict[str, int | None],
) -> None:
    """Saves weights as step 0 in a single process, with one layer's tensor in memory at a time.

    Args:
        checkpointer: checkpointer of a new directory, made for this architecture.
        config: the architecture.
        weights: the checked weights.
        dtype: element type of the saved parameters; None keeps the source's.
        token_ids: special ids for the config.json of a later export.

    Raises:
        ConfigError: the run has several processes, or the weights are float64.
        CheckpointError: the write failed. No checkpoint is left.
    """
    if jax.process_count() > 1:
        raise ConfigError("convert: runs in one process; start it without launch/local.sh")
    arrays = {}
    for path, shape in param_shapes(config).items():
        kind = dtype or param_dtype(path, config, weights)
        if kind.itemsize > 4:
            raise ConfigError(f"--dtype=auto: {path} is {kind}; name float32 or bfloat16")
        arrays[_PREFIX + path] = StreamedArray(
            shape, kind, param_reader(path, config, weights, kind)
        )
    checkpointer.save(0, arrays, {_TOKEN_IDS: token_ids})


def _architecture(fields: dict[str, Any] | None, where: str) -> ModelConfig:
    if fields is None:
        raise ConfigError(f"{where}: it does not say which architecture it is of")
    fields = dict(fields)
    if fields["rope_scaling"] is not None:
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    return ModelConfig(**fields)
