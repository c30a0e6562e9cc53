"""A model card for an export: what the files of its run say, and what they do not."""

from polaris_jax.publish.card import CARD, publish
from polaris_jax.publish.facts import RunFacts, read_facts

__all__ = ["CARD", "RunFacts", "publish", "read_facts"]
