"""New weights while the server runs: from a directory, or from a run's checkpoints."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from polaris_jax.checkpoint import Checkpointer
from polaris_jax.checkpoint.convert import is_orbax, load_any, load_on_host
from polaris_jax.config import ConfigError
from polaris_jax.models import Decoder, ModelConfig, load_config
from polaris_jax.models.tokenizer import load_tokenizer
from polaris_jax.rollout import Sampler
from polaris_jax.serve.gauges import Gauges
from polaris_jax.serve.worker import Worker, settle
from polaris_jax.sharding import unless_default
from polaris_jax.system.files import as_place, is_remote, store_errors
from polaris_jax.system.text import one_line

T = TypeVar("T")


def newest_step(directory: str) -> tuple[epath.Path, int]:
    """The folder of the newest complete step of a run, and its number; -1 if there is none yet.

    Args:
        directory: a workdir, or its checkpoints/.

    Raises:
        ConfigError: there is no such directory.
        OSError: it cannot be read now.
    """
    with _reading(directory):
        checkpointer = Checkpointer.of(directory, warn=lambda _: None)
        step = max(checkpointer.steps(), default=-1)
    return checkpointer.directory / str(step), step


def _reading(path: str) -> contextlib.AbstractContextManager[None]:
    """Makes a store's errors OSErrors; those about a disk are such already."""
    place = as_place(path)
    if not is_remote(place):
        return contextlib.nullcontext()
    return store_errors(place, passing=(ValueError, RuntimeError, MemoryError))


def load_served(path: str, *, dtype: str, mesh: Mesh | None = None) -> tuple[Decoder, Any]:
    """Model and tokenizer of an HF directory, Hub id, GGUF file, checkpoint or workdir.

    Args:
        path: where the model is.
        dtype: compute type.
        mesh: the sampler's mesh, over which the weights are split; None: the default device.

    Raises:
        ConfigError: there is no complete checkpoint, or none with a tokenizer; or the weights are
            not finite.
        FileNotFoundError, ValueError: see `load_pretrained`.
    """
    model, tokenizer = load_any(path, dtype=dtype, mesh=unless_default(mesh))
    if tokenizer is None and is_orbax(path):
        raise ConfigError(
            f"--model={path}: its checkpoints have no tokenizer; name the model that the run began "
            f"with, and --follow={path}"
        )
    require_finite(model, f"--model={path}")
    return model, tokenizer or load_tokenizer(path)


def load_followed(
    path: str, run: str, *, dtype: str, mesh: Mesh | None = None
) -> tuple[Decoder, Any, epath.Path, int]:
    """The newest complete step of a run, under another model's architecture and tokenizer.

    Args:
        path: that model; its weights are not read unless it is a run's checkpoint.
        run: workdir or checkpoints/; it has a complete step.
        dtype: compute type.
        mesh: see `load_served`.

    Returns:
        (model, tokenizer, folder of the step, its number).

    Raises:
        ConfigError: see `load_like` and `load_served`.
        ValueError, OSError, RuntimeError, MemoryError: see `load_like`.
    """
    if is_orbax(path):
        model, tokenizer = load_served(path, dtype=dtype, mesh=mesh)
        config = model.config
        del model
    else:
        config, tokenizer = load_config(path), load_tokenizer(path)
    folder, step = newest_step(run)
    return load_like(str(folder), config, dtype=dtype, mesh=mesh), tokenizer, folder, step


def load_like(
    path: str, config: ModelConfig, *, dtype: str, mesh: Mesh | None = None, on_host: bool = False
) -> Decoder:
    """Weights of the architecture that is served.

    Args:
        path: HF directory, GGUF file, a step's directory, checkpoints or workdir.
        config: the architecture, its rotary scaling included.
        dtype: compute type.
        mesh: the sampler's mesh; None: the default device.
        on_host: True for numpy arrays.

    Raises:
        ConfigError: the weights are of another architecture, or not finite.
        ValueError, OSError, RuntimeError, MemoryError: they cannot be read.
    """
    with _reading(path):
        if on_host:
            model = load_on_host(path, dtype=dtype)
        else:
            model, _ = load_any(path, dtype=dtype, mesh=unless_default(mesh))
    if model.config != config:
        raise ConfigError(
            f"{path}: another architecture or rope_scaling than the served model's; start a "
            "server for it"
        )
    require_finite(model, path)
    return model


def require_finite(model: Decoder, name: str) -> None:
    """Refuses weights with a NaN or an infinity, as a run that has diverged leaves them.

    Every answer would be noise, and what such weights write into pages may outlive them.

    Args:
        model: the weights.
        name: what errors call them.

    Raises:
        ConfigError: names the first such tensor.
    """
    for path, leaf in model.params().items():
        if not _is_finite(leaf):
            raise ConfigError(
                f"{name}: {path} has numbers that are not finite, as after a run that diverged; "
                "name an earlier checkpoint"
            )


def _is_finite(leaf: Any) -> bool:
    """Whether all numbers are finite: on the array's own devices, or of a host's without a copy."""
    if isinstance(leaf, jax.Array):
        return bool(_all_finite(leaf))
    with np.errstate(invalid="ignore"):  # inf - inf
        total = np.sum(leaf, dtype=np.float32)
    return bool(np.isfinite(total)) or bool(np.isfinite(leaf).all())


@jax.jit
def _all_finite(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf).all()


def swap(sampler: Sampler, model: Decoder) -> None:
    """Gives the sampler new weights between two steps; live requests continue under them.

    A sampler without weights stays paused: its requests wait for an update that succeeds.

    Raises:
        Exception: see `Sampler.update_weights`. If the copy failed, there are no weights.
    """
    sampler.pause()
    try:
        sampler.update_weights(model)
    finally:
        if sampler.has_weights:
            sampler.resume()


class Updates:
    """Brings new weights to the worker's sampler, one update after the other.

    Args:
        worker: owns the sampler.
        config: the architecture that is served, its rotary scaling included.
        source: what the present weights are called.
        dtype: compute type.
        gauges: counts the updates.
        log: prints a line.
        follow: workdir or checkpoints/ whose newest complete step is served; "": none.
        every_s: seconds between two looks at it.
        following: step that is served already; -1: none of that run.
        mesh: the sampler's mesh; None: it works on the default device.

    Attributes:
        source: what the present weights are called.
        version: number of the present weights, from 0.
        has_weights: False after a copy that failed half way.
        alive: False if `follow` has ended by an error, so that no newer step is served.
    """

    def __init__(
        self,
        worker: Worker,
        config: ModelConfig,
        *,
        source: str,
        dtype: str,
        gauges: Gauges,
        log: Callable[[str], None],
        follow: str = "",
        every_s: float = 10.0,
        following: int = -1,
        mesh: Mesh | None = None,
    ) -> None:
        self._worker, self._config, self._dtype = worker, config, dtype
        self._gauges, self._log, self._mesh = gauges, log, mesh
        devices = jax.local_devices() if mesh is None else mesh.devices.flat
        self._on_cpu = devices[0].platform == "cpu"
        self._follow, self._every_s, self._step = follow, every_s, following
        self._lock = asyncio.Lock()
        self.source, self.version, self.has_weights, self.alive = source, 0, True, True

    async def take(self, path: str) -> None:
        """Serves the weights of a directory from now on.

        Raises:
            ValueError, OSError, RuntimeError, MemoryError: the weights cannot be read, or are of
                another architecture. The present weights are kept.
        """
        async with self._lock:
            try:
                model = await _in_daemon(lambda: self._load(path))
                version = await asyncio.wrap_future(
                    self._worker.call(lambda sampler: _swapped(sampler, model))
                )
            except Exception as error:
                self._gauges.updates["failed"] += 1
                self._log(f"warning: weights of {path} not taken: {one_line(error)}")
                self.has_weights = await asyncio.wrap_future(
                    self._worker.call(lambda sampler: sampler.has_weights)
                )
                raise
            self.source, self.version, self.has_weights = path, version, True
            self._gauges.updates["taken"] += 1
            self._log(f"weights {version}: {path}")

    async def follow(self) -> None:
        """Serves the newest complete step of the run that is followed, until it is cancelled.

        An error of ours ends it, and `alive` is False then.
        """
        try:
            while self._follow:
                await self._look()
                await asyncio.sleep(self._every_s)
        except Exception as error:
            self.alive = False
            self._log(f"error: --follow={self._follow} has ended: {one_line(error)}")
            raise

    async def _look(self) -> None:
        try:
            folder, step = await _in_daemon(lambda: newest_step(self._follow))
            if step not in (-1, self._step):  # an earlier one: the run has gone back to it
                with contextlib.suppress(ValueError):  # of another architecture, and stays so
                    await self.take(str(folder))
                self._step = step
        except (OSError, RuntimeError, ValueError, MemoryError) as error:  # look again later
            self._log(f"warning: --follow={self._follow}: {one_line(error)}")

    def _load(self, path: str) -> Decoder:
        # The sampler's pool has taken the devices' memory. On a CPU that is the host's, and numpy
        # arrays would be copied once more on their way into the weights.
        return load_like(
            path, self._config, dtype=self._dtype, mesh=self._mesh, on_host=not self._on_cpu
        )


async def _in_daemon(work: Callable[[], T]) -> T:
    """The result of a thread that the end of the process does not wait for: loads may be long."""
    done: Future[T] = Future()
    threading.Thread(target=settle, args=(done, work), name="weights", daemon=True).start()
    return await asyncio.wrap_future(done)


def _swapped(sampler: Sampler, model: Decoder) -> int:
    swap(sampler, model)
    return sampler.version
