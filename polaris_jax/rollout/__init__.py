"""Rollouts: a paged, continuously batching sampler.

The way of a request: `sampler` (the public face) checks it (`request_checks`) and makes a
`request`; `driver` plans each step with one `scheduler` a data shard, whose `samples` hold `pages`;
`engine` prefills, dispatches and collects decode calls on the slots (`decode_state`); `programs` is
what it compiles, with attention from `kv`. `drafting` decides when a call verifies `drafts`, for
which a run keeps earlier responses (`draft_store`). `groups` and `samplers` serve the training
loop; `verbs` and `jetstream` make the engine JetStream's.
"""

from polaris_jax.records import Response
from polaris_jax.rollout.request import RolloutAborted, RolloutPaused
from polaris_jax.rollout.sampler import Sampler
from polaris_jax.rollout.settings import SamplerConfig, SamplingParams

__all__ = [
    "Response",
    "RolloutAborted",
    "RolloutPaused",
    "Sampler",
    "SamplerConfig",
    "SamplingParams",
]
