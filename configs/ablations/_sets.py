"""Problem sources of the ablations."""

from collections.abc import Iterator

from polaris_jax.demo.arithmetic import arithmetic_problems
from polaris_jax.demo.chains import Mix


def easy() -> Iterator[dict[str, str]]:
    """192 problems of one or two steps."""
    for problem in arithmetic_problems(192, 0, mix=Mix(1, 2))[0]:
        yield {"id": problem.id, "problem": problem.problem, "answer": str(problem.answer)}
