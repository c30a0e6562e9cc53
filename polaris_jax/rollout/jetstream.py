"""Our engine as a true JetStream `engine_api.Engine`; the only module that imports jetstream.

JetStream 0.2.2 imports seqio and tiktoken for tokenizers that we do not use (seqio imports
TensorFlow). Its orchestrator imports grpc for a server that we do not start: `serve.jetstream` has
one of the same service over our scheduler. Stand-ins replace these modules in `sys.modules` only
while JetStream is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import logging
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from polaris_jax.models import Decoder
from polaris_jax.rollout.decode_state import DecodeState
from polaris_jax.rollout.pages import pages_for
from polaris_jax.rollout.settings import PromptParams, SamplerConfig
from polaris_jax.rollout.verbs import Prefix, VerbEngine

# The Driver pads prompts to powers of two from here.
SHORTEST_PADDED_PROMPT = 16
STAND_INS = ("seqio", "seqio.vocabularies", "tiktoken", "tiktoken.load", "grpc", "grpc.aio")


class _Anything(types.ModuleType):
    """A module every attribute of which is an empty class: enough to subclass and annotate."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    absent = [name for name in STAND_INS if name not in sys.modules]
    for name in absent:
        sys.modules[name] = _Anything(name)
    for name in absent:
        parent, _, child = name.rpartition(".")
        if parent in absent:
            setattr(sys.modules[parent], child, sys.modules[name])
    # The stub of the server's protocol registers itself only with a grpc that knows it.
    if "grpc" in absent:
        vars(sys.modules["grpc"])["__version__"] = "0"
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def _load(name: str) -> types.ModuleType:
    with _stand_ins():
        return importlib.import_module(name)


def load_driver() -> type:
    """JetStream's own `Driver` class.

    The root logger, which the import sets to DEBUG, is left as it was.

    Raises:
        ModuleNotFoundError: google-jetstream or shortuuid is not installed.
    """
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        return _load("jetstream.core.orchestrator").Driver
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def load_protocol() -> tuple[types.ModuleType, types.ModuleType]:
    """The messages and the service of JetStream's server: (jetstream_pb2, jetstream_pb2_grpc).

    Unlike the rest of this module it needs the real grpc.

    Raises:
        ModuleNotFoundError: google-jetstream or grpcio is not installed.
    """
    import grpc

    messages = importlib.import_module("jetstream.core.proto.jetstream_pb2")
    service = importlib.import_module("jetstream.core.proto.jetstream_pb2_grpc")
    if service.grpc is not grpc:  # it was loaded for the Driver, with the stand-in
        service = importlib.reload(service)
    return messages, service


def jetstream_engine(
    model: Decoder,
    config: SamplerConfig,
    *,
    tokenizer: Any,
    params: PromptParams | None = None,
    stop_token_ids: tuple[int, ...] = (),
    samples_per_slot: int = 1,
) -> Any:
    """A `jetstream.engine.engine_api.Engine` over our engine.

    With `config.decode_steps` above 1, JetStream's Driver may deliver up to that many less one
    tokens beyond a request's max_tokens: it looks at the length once a call.

    Args:
        model: what `load_params()` returns, until it is given other weights.
        config: sizes; the pool must hold `slots` sequences of `max_len`, since JetStream knows no
            preemption. `slots` counts sequences: JetStream sees `slots / samples_per_slot` of them.
        tokenizer: what `build_tokenizer` returns: bos_id, pad_id, eos_id, stop_tokens, encode and
            decode as in `jetstream.engine.tokenizer_api.Tokenizer`.
        params: how every request is sampled (JetStream has no settings a request); greedy if None.
        stop_token_ids: ids that end a row on the device.
        samples_per_slot: samples of every request, which JetStream's slot holds side by side.

    Raises:
        ValueError: the pool is too small; `slots` is no multiple of `samples_per_slot`; `dtype` is
            not the weights'.
        ModuleNotFoundError: google-jetstream is not installed.
    """
    if samples_per_slot < 1 or config.slots % samples_per_slot:
        raise ValueError(
            f"samples_per_slot={samples_per_slot}: must be at least 1 and divide slots="
            f"{config.slots}, the sequences decoded at once; change either"
        )
    needed = config.slots * pages_for(config.max_len, config.page_size) + 1
    if config.num_pages < needed:
        raise ValueError(
            f"num_pages={config.num_pages}: JetStream does not preempt, so {config.slots} slots of "
            f"max_len={config.max_len} need {needed} pages"
        )
    own = model.embed_VD[...].dtype.name
    if config.dtype not in (None, own):
        raise ValueError(
            f"dtype={config.dtype!r}: JetStream's engine takes weights as they are, and these are "
            f"{own}; cast the model, or leave dtype out"
        )
    config = dataclasses.replace(config, dtype=own)
    if params is None:
        params = PromptParams(
            temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, max_tokens=config.max_len, seed=0
        )
    return _engine_class()(model, config, tokenizer, params, stop_token_ids, samples_per_slot)


def _check_same_shapes(old: Decoder, new: Decoder) -> None:
    if new.config != old.config:
        raise ValueError(
            f"load_params: weights of another architecture, {new.config}; the engine was compiled "
            f"for {old.config}: make an engine of its own for them"
        )
    for path, leaf in old.params().items():
        other = new.params()[path]
        if other.dtype != leaf.dtype:
            raise ValueError(
                f"load_params: {path} is {other.dtype}, the engine was compiled for {leaf.dtype}; "
                "cast the weights"
            )


@functools.cache
def _engine_class() -> type:
    engine_api = _load("jetstream.engine.engine_api")
    tokenizer_pb2 = _load("jetstream.engine.tokenizer_pb2")

    class JetStreamEngine(engine_api.Engine):
        """See `jetstream_engine`."""

        def __init__(
            self,
            model: Decoder,
            config: SamplerConfig,
            tokenizer: Any,
            params: PromptParams,
            stop_token_ids: tuple[int, ...],
            samples_per_slot: int,
        ):
            self._model = model
            self._config = config
            self._tokenizer = tokenizer
            self._params = params
            self._stop_token_ids = stop_token_ids
            self._samples = samples_per_slot
            self._engine = VerbEngine(model.config, config)
            self._mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))

        def prefill(
            self,
            *,
            params: Decoder,
            existing_prefix: Prefix | None = None,
            padded_tokens: Any,
            true_length: int,
        ) -> Prefix:
            return self._engine.prefill(
                params=params,
                existing_prefix=existing_prefix,
                padded_tokens=padded_tokens,
                true_length=true_length,
            )

        def insert(self, prefix: Prefix, decode_state: DecodeState, slot: int) -> DecodeState:
            first = slot * self._samples
            slots = range(first, first + self._samples)
            return self._engine.insert_samples(prefix, decode_state, slots, params=self._params)

        def generate(self, params: Decoder, decode_state: DecodeState) -> tuple[DecodeState, Any]:
            live = np.flatnonzero(decode_state.rows.alive_B)
            state, result = self._engine.generate(
                params, decode_state, stop_token_ids=self._stop_token_ids
            )
            for slot in live[~result.alive[live]]:
                state.free(int(slot))
            data = result.data.copy()
            # The Driver ends a row when this exceeds max_tokens, before it reads the call's
            # tokens: so it is the length at the first of them.
            data[:, -1] -= np.maximum(result.count - 1, 0)
            return state, engine_api.ResultTokens(
                data=data,
                tokens_idx=result.tokens_idx,
                valid_idx=result.valid_idx,
                length_idx=result.length_idx,
                samples_per_slot=self._samples,
            )

        def load_params(self, params: Decoder | None = None) -> Decoder:
            """What `prefill` and `generate` take as `params`: the weights given last.

            Args:
                params: new weights, of the same architecture and dtype, so nothing is compiled
                    again. Prefixes and slots keep the keys and values of the old weights.

            Raises:
                ValueError: weights of another architecture or dtype.
            """
            if params is not None:
                _check_same_shapes(self._model, params)
                self._model = params
            return self._model

        def get_prefix_destination_sharding(self) -> Any:
            return jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec())

        def get_tokenizer(self) -> Any:
            return tokenizer_pb2.TokenizerParameters(path="", extra_ids=0)

        def build_tokenizer(self, metadata: Any) -> Any:
            del metadata
            return self._tokenizer

        def init_decode_state(self, *args: Any, **kwargs: Any) -> DecodeState:
            del args, kwargs
            return self._engine.init_decode_state(self._model.embed_VD[...].dtype)

        @property
        def max_concurrent_decodes(self) -> int:
            return self._config.slots // self._samples

        @property
        def samples_per_slot(self) -> int:
            return self._samples

        @property
        def max_prefill_length(self) -> int:
            """The longest padded prompt: a power of two, as the Driver wants it."""
            length = SHORTEST_PADDED_PROMPT
            while 2 * length <= self._config.max_len:
                length *= 2
            return length

        @property
        def mesh(self) -> jax.sharding.Mesh:
            return self._mesh

        @property
        def colocated_cpus(self) -> None:
            return None

    return JetStreamEngine
