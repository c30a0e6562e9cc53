"""`python -m tests.support.always_drafts train ...`: drafts whenever something matches.

A model of a test is so small that the host's part of a call outweighs every draft.
"""

from polaris_jax.__main__ import entry
from polaris_jax.rollout import engine
from polaris_jax.rollout.draft_costs import NO_COSTS, CallCosts


def no_costs(**_: object) -> CallCosts:
    """In the place of `call_costs`."""
    return NO_COSTS


if __name__ == "__main__":
    engine.call_costs = no_costs
    entry()
