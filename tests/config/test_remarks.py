"""Legal settings of which a person should know."""

import re

import pytest

from polaris_jax.config import build_config, few_problems, remarks

SAMPLER = {"objective": {"old_logprobs": "sampler"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"objective": {"tis_cap": 1.0}}, "tis_cap: acts only with .*old_logprobs=sampler"),
        ({"objective": {"tis_cap": 0.0}}, ""),
        ({"batch": {"min_informative": 0.5}}, "min_informative: acts only with .*resample or skip"),
        ({"batch": {"min_informative": 0.5, "on_scarce": "skip"}}, ""),
        ({"batch": {"max_copies": 2, "substitute": False}}, "max_copies: acts only with"),
        (
            {"stages": [{"steps": 10, "end_reward_gain": 0.1}]},
            r"end_reward_gain: .* step 2 x end_window=20 ",
        ),
        ({"stages": [{"steps": 20, "end_reward_gain": 0.1}]}, ""),
        (
            {"stages": [{}, {"drop_above": 0.8}]},
            r"\[1\]\.drop_above: acts only when a further",
        ),
        ({"stages": [{"drop_above": 0.8}, {"drop_above": 1.0}]}, ""),
        ({"evaluate": {"yarn": "on"}}, ""),
        ({"evaluate": {"yarn": "on", "every_steps": 5}}, "evaluate.yarn=on: .* alone; held-out"),
        (SAMPLER, ""),
        ({"objective": {"old_logprobs": "sampler", "tis_cap": 0.0}}, ""),
        (
            {"objective": {"old_logprobs": "sampler", "tis_cap": 1.2}},
            r"tis_cap=1\.2: .* above 1\.28",
        ),
        ({"batch": {"on_scarce": "resample", "max_resample": 0}}, "max_resample=0: .* never"),
        ({"optimizer": {"moment_dtype": "bfloat16"}}, "the recipe's is float32"),
    ],
)
def test_what_is_said(changes, said):
    lines = remarks(build_config(changes))
    assert len(lines) == bool(said)
    assert re.search(said, "".join(lines))


def test_fewer_problems_than_a_step_has_prompts():
    assert few_problems(32, 32) == ""
    assert "each is in a step about 4.0 times" in few_problems(8, 32)
