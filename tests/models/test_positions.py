"""Past which position an evaluation is refused, and past which it is warned of."""

import dataclasses
import re

import pytest

from polaris_jax.config import ConfigError, build_config
from polaris_jax.models import RopeScaling
from polaris_jax.models.positions import (
    check_budget,
    check_evaluated_positions,
    check_held_out_positions,
    check_positions,
    positions_of,
)
from polaris_jax.models.presets import PRESETS

MODEL = PRESETS["qwen3-4b"]


QWEN_CARD = RopeScaling("yarn", 4.0, 32_768)  # as Qwen's model cards add it


@pytest.mark.parametrize(
    ("claimed", "scaling", "positions"),
    [
        (40_960, None, 40_960),
        (32_768, QWEN_CARD, 131_072),
        (40_960, QWEN_CARD, 131_072),
        (131_072, QWEN_CARD, 131_072),
        (131_072, RopeScaling("llama3", 8.0, 8192), 131_072),
        (4096, RopeScaling("linear", 4.0), 16_384),
    ],
)
def test_a_models_own_scaling_counts_in_its_positions(claimed, scaling, positions):
    model = dataclasses.replace(MODEL, max_position_embeddings=claimed, rope_scaling=scaling)
    assert positions_of(model) == positions


def trained(
    *budgets: int, factor: float = 1.0, claimed: int = 40_960, scaling: RopeScaling | None = None
) -> list[str]:
    """The lines of a run with stages of these budgets; prompts take 1,024."""
    lines: list[str] = []
    stages = [{"max_response_tokens": budget, "rope_factor": factor} for budget in budgets]
    config = build_config({"stages": stages})
    model = dataclasses.replace(MODEL, max_position_embeddings=claimed, rope_scaling=scaling)
    check_positions(config, model, lines.append)
    return lines


def test_a_run_may_use_the_positions_of_its_bases_own_scaling():
    assert trained(65_536, scaling=QWEN_CARD) == []
    with pytest.raises(ConfigError, match="over the checkpoint's 131072; lower the budget, or set"):
        trained(131_072, scaling=QWEN_CARD)  # a rope_factor would replace the scaling
    with pytest.raises(ConfigError, match=r"over the checkpoint's 40960; .* raise stages\[0\]"):
        trained(65_536)


def test_a_stage_that_replaces_the_bases_own_scaling_says_so_once():
    lines = trained(8192, 52_224, 9000, factor=1.5, claimed=131_072, scaling=QWEN_CARD)
    (line,) = lines
    assert line.startswith("warning: stages[1].rope_factor=1.5 replaces the model's own rotary")
    assert "(yarn, factor 4)" in line and "1.5 x 32,768 = 49,152" in line and "53,248" in line
    assert trained(8192, factor=1.5) == []  # there is none to replace


def test_a_stage_that_shortens_the_models_reach_says_so():
    """Qwen3-4B-Thinking-2507 has 262,144 positions of its own."""
    (line,) = trained(8192, 8192, factor=1.5, claimed=262_144)[:1]
    assert (
        "stages[0].rope_factor=1.5 is made for 49,152 positions, and the model has 262,144" in line
    )
    assert "rope.yarn.original_max_position_embeddings" in line


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


def test_a_measured_budget_is_held_against_the_first_stages_scaling():
    def check(tokens: int, factor: float) -> list[str]:
        lines: list[str] = []
        config = build_config({"stages": [{"max_response_tokens": 8, "rope_factor": factor}]})
        check_budget(
            config, MODEL, lines.append, field="probe.max_response_tokens", tokens=tokens, stage=0
        )
        return lines

    assert check(39_936, 1.0) == check(60_416, 1.5) == []
    for tokens, factor, limit in ((39_937, 1.0, 40_960), (60_417, 1.5, 61_440)):
        with pytest.raises(ConfigError, match=f"probe.max_response_tokens={tokens}: .*{limit}; "):
            check(tokens, factor)


@pytest.mark.parametrize(
    ("evaluate", "said"),
    [
        ({"max_response_tokens": 90_000, "yarn": "on"}, ""),
        ({"every_steps": 10}, ""),
        ({"every_steps": 10, "max_response_tokens": 39_936}, ""),
        (
            {"every_steps": 10, "max_response_tokens": 90_000, "yarn": "on"},
            "warning: evaluate.max_response_tokens=90000: .* over the checkpoint's 40960; ",
        ),
    ],
)
def test_held_out_scores_past_the_positions_are_a_warning(evaluate, said):
    lines: list[str] = []
    config = build_config({"evaluate": evaluate, "stages": [{}, {}]})
    check_held_out_positions(config, MODEL, lines.append)
    assert len(lines) == bool(said)
    assert re.match(said, "".join(lines))
