"""Legal settings of which a person should know."""

import re

import pytest

from polaris_jax.config import build_config, remarks

SAMPLER = {"objective": {"old_logprobs": "sampler"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"objective": {"tis_cap": 1.0}}, ""),  # not read
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
