"""The loss: clipping, KL, entropy bonus, and whose log-probs the ratio is taken to.

    polaris ablate configs/ablations/objective.py --out workdirs/ablations/objective

Expected before the runs: with one optimizer step a batch the ratio is 1, so the clips can differ
only with several minibatches; a KL term and an entropy bonus of usual size change little in 60
steps; the three kinds of old log-probs agree, since sampler and trainer do.
"""

import runpy
from pathlib import Path

from polaris_jax.ablate import Arm

task = runpy.run_path(str(Path(__file__).with_name("_task.py")))
FOUR = {"objective.minibatches": 4, "objective.old_logprobs": "recompute"}

TABLE = task["table"](
    Arm("usual"),
    Arm("clip-0.2-0.2-of-4", {**FOUR, "objective.clip_high": 0.2}),
    Arm("clip-0.2-0.28-of-4", FOUR, against="clip-0.2-0.2-of-4"),
    Arm("kl-0.001", {"objective.kl_coef": 0.001}),
    Arm("kl-0.01", {"objective.kl_coef": 0.01}),
    Arm("entropy-0.001", {"objective.entropy_coef": 0.001}),
    Arm("old-recompute", {"objective.old_logprobs": "recompute"}),
    Arm("old-sampler", {"objective.old_logprobs": "sampler"}),
    overrides=task["BOTH"],
)
