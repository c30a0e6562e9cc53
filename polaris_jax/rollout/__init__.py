"""Rollouts: a paged, continuously batching sampler behind JetStream's engine verbs."""

from polaris_jax.records import Response
from polaris_jax.rollout.decode_state import SamplerConfig
from polaris_jax.rollout.sampler import RolloutAborted, Sampler
from polaris_jax.rollout.sampling import SamplingParams

__all__ = ["Response", "RolloutAborted", "Sampler", "SamplerConfig", "SamplingParams"]
