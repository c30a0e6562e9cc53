"""The command lines of this folder: one model, two sets of problems, few sizes to compile for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.micro_run import flags

# Responses a prompt: each purpose has its own, so that a request tells what it is for.
TRAINED, PROBED, SCORED = 4, 5, 2
PROMPTS = 6  # of a step
PROBLEMS = 12  # all are measured: with fewer there may be no 4-gram to find
# Budgets of 12 and 16 and these rotary scalings alone: others would be compiled for anew.
FIELDS = {
    "mesh.fsdp": 8,  # all virtual devices
    "batch.rows": 8,
    "rollout.prompts_per_step": PROMPTS,
    "rollout.responses_per_prompt": TRAINED,
    "stages[0].steps": 2,
    "stages[1].steps": 2,
    "stages[0].max_response_tokens": 12,
    "stages[1].max_response_tokens": 16,
    "stages[1].rope_factor": 1.25,
    "rope.yarn.attention_factor": 1.1,
    "rope.yarn.beta_fast": 16,
    "rope.yarn.beta_slow": 2,
    "probe.problems": PROBLEMS,
    "probe.n": PROBED,
    "evaluate.n": SCORED,
    "evaluate.max_response_tokens": 0,
}
# What `YARN` is by FIELDS, as it arrives at a model.
YARN = {
    "rope_type": "yarn",
    "factor": 1.25,
    "original_max_position_embeddings": 32,
    "attention_factor": 1.1,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
}


class Micro(NamedTuple):
    """What commands are run on: a base model's directory, problems to train on and to score."""

    base: Path
    problems: Path
    held_out: Path

    def line(
        self, fields: Mapping[str, object] | None = None, *, problems: Path | None = None
    ) -> list[str]:
        """The flags of a command, without --workdir.

        Args:
            fields: config fields beside those of FIELDS.
            problems: others to train on.
        """
        settings = {"evaluate.problems": self.held_out, **FIELDS, **(fields or {})}
        more = [f"--config.{name}={value}" for name, value in settings.items()]
        return flags(self.base, problems or self.problems, *more)


def write_problems(path: Path, digits: Sequence[str], *, first: int) -> Path:
    """A file of problems; each takes any of its digits for an answer.

    Args:
        path: the file to write.
        digits: the digit of each problem; the model answers 1, 2, 3 or 4.
        first: the number in the first one's text.
    """
    rows = [
        {"id": f"q{i}", "problem": f"Start with {first + i}.", "answer": list(right)}
        for i, right in enumerate(digits)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
