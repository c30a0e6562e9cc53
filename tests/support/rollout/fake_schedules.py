"""What the acts of a random schedule do to a sampler whose device programs are stand-ins."""

import random

import numpy as np

from tests.support.rollout.fake_engine import (
    STOPS,
    VOCAB,
    FakeSampler,
    expected_tokens,
    settings,
)
from tests.support.rollout.schedules import CUTS, Act, Submit, pick


def history_of(
    prompts, rows, n: int, *, stops=(), wrong: float = 0.0, seed: int = 0
) -> list[list[np.ndarray]]:
    """The responses that will come, with a share of their tokens exchanged."""
    noise = random.Random(seed)
    return [
        [
            np.array(
                [
                    noise.randrange(VOCAB) if noise.random() < wrong else token
                    for token in expected_tokens(
                        tuple(prompt), row.seed, sample, max_tokens=row.max_tokens, stops=stops
                    )
                ]
            )
            for sample in range(n)
        ]
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def act_on_fake(sampler: FakeSampler, act: Submit | Act, *, wrong: float | None = None) -> None:
    """Does what the act says.

    Args:
        sampler: the sampler.
        act: the act.
        wrong: share of the tokens of a request's history that will not come; None: it has none.
    """
    if isinstance(act, Submit):
        rows = [settings(act.max_tokens, seed) for seed in act.seeds]
        stops = STOPS if act.stops else ()
        history = None
        if wrong is not None:
            history = history_of(act.prompts, rows, act.n, stops=stops, wrong=wrong, seed=act.n)
        sampler.submit(
            act.prompts, rows, act.n, stops=stops, expected=act.expected, history=history
        )
    elif act.what == "step":
        for _ in range(1 + act.number):
            sampler.step()
    elif act.what == "abort":
        sampler.abort(sampler.requests[act.number % len(sampler.requests)][0])
    elif act.what == "leave":
        sampler.leave(act.number % len(sampler.requests))
    elif act.what in CUTS:
        sampler.paused = False
        sampler.step()
        which = pick([request for request, _ in sampler.requests], act.number)
        if which is not None and act.what == "step, leave":
            sampler.leave(which)
        elif which is not None:
            sampler.abort(sampler.requests[which][0])
    elif act.what in ("pause", "resume"):
        sampler.paused = act.what == "pause"
    elif act.what == "update":
        sampler.update_weights()
    else:
        sampler.release_pool()
