"""Past which position an evaluation is refused, and past which it is warned of."""

import dataclasses

import pytest

from polaris_jax.config import ConfigError, build_config
from polaris_jax.models import RopeScaling
from polaris_jax.models.positions import check_evaluated_positions
from polaris_jax.models.presets import PRESETS

MODEL = PRESETS["qwen3-4b"]


def told(
    budget: int, *, yarn: str, limit: int = 0, scaling: RopeScaling | None = None
) -> list[str]:
    """The lines of an evaluation of a model of 40,960 positions; prompts take 1,024."""
    lines: list[str] = []
    config = build_config(
        {
            "model": {"max_position_tokens": limit},
            "stages": [{"max_response_tokens": 1024}],
            "evaluate": {"yarn": yarn, "max_response_tokens": budget},
        }
    )
    model = dataclasses.replace(MODEL, rope_scaling=scaling)
    for scaled in {"off": [False], "on": [True], "both": [False, True]}[yarn]:
        check_evaluated_positions(
            config, model, lines.append, max_response_tokens=budget, yarn=scaled
        )
    return lines


def test_an_evaluation_past_the_models_positions_is_refused_without_yarn():
    assert told(39_936, yarn="off") == []
    with pytest.raises(ConfigError, match=r"^evaluate.max_response_tokens=39937: .*evaluate.yarn="):
        told(39_937, yarn="off")
    assert told(39_937, yarn="off", scaling=RopeScaling("yarn", 1.5, 32_768)) == []


def test_it_goes_on_with_one_warning_where_it_was_asked_to():
    (line,) = told(39_937, yarn="off", limit=53_248)
    assert line.startswith("warning: ") and "40,961 positions" in line and "40,960" in line
    assert told(48_128, yarn="on") == []  # 49,152 = 1.5 x 32,768
    (line,) = told(90_000, yarn="on")
    assert line.startswith("warning: ") and "91,024 positions" in line and "49,152" in line
    plain, scaled = told(90_000, yarn="both")
    assert "40,960" in plain and "49,152" in scaled
