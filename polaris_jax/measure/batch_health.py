"""What a training batch says of the policy, for a person."""

from __future__ import annotations

from polaris_jax.assemble import Parts
from polaris_jax.measure.solve import judged
from polaris_jax.records import Graded
from polaris_jax.stages.guards import is_due
from polaris_jax.state import RunState


def say_health(parts: Parts, state: RunState, graded: Graded) -> None:
    """Prints what the batch says of the policy, at the first step and if no group has informed.

    A streak of such steps is judged when its guard is due (`guards.uninformative_steps`).
    """
    streak = state.guards.streaks.get("uninformative", 0) + 1
    due = is_due(streak, parts.config.guards.uninformative_steps)
    if state.step > 0 and (graded.informative_P.any() or not due):
        return
    health = judged(graded, parts.problems, parts.solver.tokenizer, reward=parts.config.reward)
    for text in health.lines():
        parts.progress.line(text)
