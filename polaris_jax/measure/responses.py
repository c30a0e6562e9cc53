"""Graded responses as rows that people and `polaris show` read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from polaris_jax.evaluate.scoring import FAILED
from polaris_jax.records import Graded, Problem
from polaris_jax.run.progress_file import row_line
from polaris_jax.system import processes
from polaris_jax.system.files import delete_partials, write_bytes
from polaris_jax.system.foreign import bounded_lines


def say_failed(figures: Mapping[str, Any], responses: int, say: Callable[[str], None]) -> None:
    """Warns if `figures` count failed grading; says nothing if they do not."""
    if failed := figures.get(FAILED):
        say(
            f"warning: grading failed for {failed} of {responses} responses, which score 0 (look "
            "at reward.function and reward.timeout_s)"
        )


def ids_text(token_ids: Sequence[int]) -> str:
    """Token ids as a plain column: decimal numbers with spaces between them."""
    return " ".join(map(str, token_ids))


def ids_of(row: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The token ids of a row; None if an earlier version wrote it without them."""
    text = row.get("token_ids")
    return None if text is None else tuple(map(int, text.split()))


def response_row(
    problem: Problem,
    graded: Graded,
    p: int,
    r: int,
    prefixes: Mapping[int, float],
    *,
    with_ids: bool = False,
) -> dict[str, Any]:
    """A row of responses.jsonl: plain columns, and the problem's own columns behind them.

    A column of the problem's that has the name of one of ours is called `extra_NAME`.

    Args:
        problem: problem number `p` of `graded`.
        graded: graded responses.
        p: number of the problem.
        r: number of the response.
        prefixes: {budget: reward of the response's beginning}, for budgets that cut it.
        with_ids: add the token ids, the stop token included (`ids_of` reads them).
    """
    text = graded.texts[p][r]
    row = {
        "problem_id": problem.id,
        "sample": r,
        "question": problem.problem,
        "gold": problem.answer,
        "reward": float(graded.reward_PR[p, r]),
        **{f"reward_at_{budget}": reward for budget, reward in prefixes.items()},
        "answer": graded.answers[p][r] if graded.answers else None,
        "reason": graded.reasons[p][r] if graded.reasons else "",
        FAILED: bool(graded.failed and graded.failed[p][r]),
        "tokens": len(graded.token_ids[p][r]),
        "finish_reason": graded.finish_reasons[p][r],
        "well_formed": "</think>" in text and "\\boxed{" in text,
        "text": text,
        **({"token_ids": ids_text(graded.token_ids[p][r])} if with_ids else {}),
    }
    return row | {(f"extra_{k}" if k in row else k): v for k, v in problem.extra.items()}


class KeptResponses:
    """A folder with the responses of a measurement: a JSON-lines file for each batch of problems.

    Partial files that a kill has left are deleted; only the folder's owner may make this object.
    A batch that a kill has interrupted is sampled again and replaces its file. Files of other
    settings, other inputs or other problems have other names.

    Args:
        folder: the folder; made by the first write.
        identity: what the responses depend on, as in the progress file.
        may_write: called before each write; raises if the folder belongs to another command.
    """

    def __init__(
        self, folder: epath.Path, identity: Mapping[str, Any], *, may_write: Callable[[], None]
    ) -> None:
        text = json.dumps(identity, sort_keys=True, default=str)
        self._digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        self._folder, self._may_write = folder, may_write
        if processes.is_first():
            delete_partials(folder)

    def write(self, graded: Graded, problems: Sequence[Problem], *, before: int) -> None:
        """Writes the responses of a batch; they are on the disk when the call returns.

        Args:
            graded: responses to the problems, in the problems' order.
            problems: the problems.
            before: number of problems that were finished before, which names the file.
        """
        rows = [
            response_row(problem, graded, p, r, {})
            for p, problem in enumerate(problems)
            for r in range(len(graded.texts[p]))
        ]
        self._may_write()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{before:08d}-{self._digest}.jsonl"
        if path.exists() and not _begins_with(path, problems[0].id):  # problems asked again
            ids = "\n".join(problem.id for problem in problems)
            more = hashlib.blake2b(ids.encode(), digest_size=4).hexdigest()
            path = path.with_name(f"{path.stem}-{more}.jsonl")
        write_bytes(path, b"".join(map(row_line, rows)))


def _begins_with(path: epath.Path, problem_id: str) -> bool:
    """True if the first row of a file of responses is of that problem."""
    with path.open("rb") as file:
        _, line = next(bounded_lines(file), (0, None))
    try:
        return line is not None and json.loads(line)["problem_id"] == problem_id
    except (ValueError, LookupError, TypeError):  # not a row: the file is left alone
        return False
