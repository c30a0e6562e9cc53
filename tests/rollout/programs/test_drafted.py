"""A verify call takes what single steps would have drawn, up to the same end."""

import random

import jax
import jax.numpy as jnp
import numpy as np

from polaris_jax.rollout.programs.drafted import accepted
from polaris_jax.rollout.programs.rows import Rows

DRAFTS, STOP = 3, 0


def one_by_one(
    draft: list[int], drawn: list[int], *, position: int, limit: int
) -> tuple[int, bool]:
    """(tokens, alive) of a row that takes single steps while it draws what was drafted."""
    for count, token in enumerate(drawn, 1):
        if token == STOP or position + count + 1 >= limit:
            return count, False
        if count > len(draft) or token != draft[count - 1]:
            return count, True
    raise AssertionError


def test_accepted_tokens_are_those_of_single_steps():
    pick, rows = random.Random(0), 400
    position = [pick.randrange(3, 9) for _ in range(rows)]
    left = [pick.randrange(1, DRAFTS + 4) for _ in range(rows)]
    drawn = [[pick.choice([STOP, 1, 1, 2, 2]) for _ in range(DRAFTS + 1)] for _ in range(rows)]
    drafts = [
        [token if pick.random() < 0.8 else 3 for token in row[: pick.randrange(DRAFTS + 1)]]
        for row in drawn
    ]
    alive_B = np.array([pick.random() < 0.9 for _ in range(rows)])
    draft_BX = np.full((rows, DRAFTS), 1, np.int32)  # padding that may look right
    for row, draft in enumerate(drafts):
        draft_BX[row, : len(draft)] = draft
    limit_B = np.array(position) + 1 + np.array(left)
    taken_BT, alive_after_B = jax.jit(accepted)(
        Rows(None, jnp.array(position), None, jnp.array(limit_B), jnp.array(alive_B), None),
        jnp.array(draft_BX),
        jnp.array([len(draft) for draft in drafts]),
        jnp.array(drawn),
        jnp.array([STOP, -1]),
    )
    taken_BT, alive_after_B = np.asarray(taken_BT), np.asarray(alive_after_B)
    counts = set()
    for row in range(rows):
        count, alive = one_by_one(
            drafts[row], drawn[row], position=position[row], limit=int(limit_B[row])
        )
        count, alive = (count, alive) if alive_B[row] else (0, False)
        wanted = [t < count for t in range(DRAFTS + 1)]
        assert (taken_BT[row].tolist(), bool(alive_after_B[row])) == (wanted, alive)
        counts.add((count, alive))
    assert counts >= {(c, a) for c in range(1, DRAFTS + 2) for a in (True, False)}
