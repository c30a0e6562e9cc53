"""Rollouts: a paged, continuously batching sampler behind JetStream's engine verbs."""

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
