"""The config boundary: every bad value is one line that names field, value, rule and remedy."""

import dataclasses
import re

import pytest
from ml_collections import ConfigDict

from polaris_jax import config as config_module
from polaris_jax.config import (
    SETTINGS,
    ConfigError,
    RunConfig,
    StageSection,
    binding_fields,
    build_config,
    check_pages,
    config_fields,
    config_hash,
    default_config,
    lock,
    row_len_tokens,
    stage,
)


def with_values(**values):
    """The default ConfigDict with dotted names (`__` for the dot) set; `stages` as a list."""
    config = default_config().unlock()
    for name, value in values.items():
        *sections, field = name.split("__")
        target = config
        for section in sections:
            target = target[section]
        target[field] = value
    return config


def refusal(**values) -> str:
    with pytest.raises(ConfigError) as caught:
        build_config(with_values(**values))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_default_is_whole_valid_and_round_trips():
    assert build_config(default_config()) == RunConfig()
    assert build_config({}) == RunConfig()


def test_a_plain_nested_mapping_will_do():
    config = build_config({"seed": 3, "stages": [{"steps": 7}, {"steps": 9}]})
    assert config.seed == 3
    assert [s.steps for s in config.stages] == [7, 9]
    assert config.stages[0].max_response_tokens == StageSection().max_response_tokens


def test_whole_numbers_become_floats_where_a_float_is_meant():
    learning_rate = build_config({"optimizer": {"learning_rate": 1}}).optimizer.learning_rate
    assert isinstance(learning_rate, float)


def test_the_config_dict_is_locked_down_to_the_stages():
    config = default_config()
    config.unlock()
    config.stages = [ConfigDict({"steps": 3})]
    lock(config)
    for target, name in ((config, "sed"), (config.rollout, "slot"), (config.stages[0], "step")):
        with pytest.raises((AttributeError, KeyError)):
            target[name] = 1
    with pytest.raises((AttributeError, KeyError)):
        stage(steps=3).stepz = 4


@pytest.mark.parametrize(
    ("mapping", "field", "nearest"),
    [
        ({"sed": 1}, "sed", "seed"),
        ({"rollout": {"slot": 1}}, "rollout.slot", "rollout.slots"),
        ({"objective": {"clip_hi": 0.3}}, "objective.clip_hi", "objective.clip_high"),
        ({"stages": [{}, {"temprature": 1}]}, "stages[1].temprature", "stages[1].temperature"),
        ({"rope": {"yarn": {"facto": 2}}}, "rope.yarn.facto", "rope.yarn.factor"),
        (
            {"rollout": {"learning_rate": 1.0}},
            "rollout.learning_rate",
            "warmstart.learning_rate or optimizer.learning_rate",
        ),
        (
            {"rollout": {"learning_rat": 1.0}},
            "rollout.learning_rat",
            "warmstart.learning_rate or optimizer.learning_rate",
        ),
    ],
    ids=["top", "section", "suffix", "stage", "nested", "wrong-section", "both"],
)
def test_an_unknown_field_suggests_the_nearest_name(mapping, field, nearest):
    with pytest.raises(ConfigError, match=re.escape(f"did you mean {nearest}?")) as caught:
        build_config(mapping)
    assert str(caught.value).startswith(f"{field}: there is no such field")


@pytest.mark.parametrize(
    ("mapping", "nearest"),
    [
        ({"optimizer": {"lr": 1e-6}}, "optimizer.learning_rate"),
        ({"lr": 1e-6}, "optimizer.learning_rate"),
        ({"batch_size": 8}, "rollout.prompts_per_step"),
        ({"rollout": {"num_generations": 8}}, "rollout.responses_per_prompt"),
        ({"max_new_tokens": 8}, "stages[0].max_response_tokens"),
        ({"objective": {"beta": 0.1}}, "objective.kl_coef"),
        ({"objective": {"kl": 0.1}}, "objective.kl_coef"),
        ({"objective": {"epsilon": 0.1}}, "objective.clip_low or objective.clip_high"),
        ({"optimizer": {"epsilon": 0.1}}, "optimizer.eps"),
        ({"warmstart": {"batch_siz": 8}}, "warmstart.batch_size"),
    ],
)
def test_what_other_trainers_call_a_field_suggests_ours(mapping, nearest):
    with pytest.raises(ConfigError, match=re.escape(f"did you mean {nearest}?")):
        build_config(mapping)


def test_no_usual_name_is_the_name_of_a_field_of_ours():
    usual = {name for field in SETTINGS.values() for name in field.usual.split()}
    ours = {name.rsplit(".", 1)[-1] for name in SETTINGS}
    assert usual & ours == {"batch_size", "max_steps"}  # the warm start and its problems have them


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"seed": "3"}, "seed='3': expected int, got str"),
        ({"seed": True}, "seed=True: expected int, got bool"),
        ({"seed": 1.5}, "seed=1.5: expected int, got float"),
        ({"seed": None}, "seed=None: expected int, got NoneType"),
        ({"batch": {"rescue": 1}}, "batch.rescue=1: expected bool, got int"),
        ({"optimizer": {"eps": "1e-8"}}, "optimizer.eps='1e-8': expected float, got str"),
        ({"optimizer": {"eps": float("nan")}}, "optimizer.eps=nan: not a number"),
        ({"stages": [{"drop_above": float("inf")}]}, "stages[0].drop_above=inf: must be finite"),
        (
            {"optimizer": {"max_grad_norm": -float("inf")}},
            "optimizer.max_grad_norm=-inf: must be finite",
        ),
        ({"model": {"dtype": "fp8"}}, "model.dtype='fp8': expected one of auto, float32, bfloat16"),
        ({"objective": {"std": True}}, "objective.std=True: expected one of std, off"),
        ({"rollout": 3}, "rollout=3: expected a section with fields"),
        ({"stages": 3}, "stages=3: expected a list"),
        ({"stages": [3]}, "stages[0]=3: expected a section with fields"),
        ({"evaluate": {"budgets": [8, "x"]}}, "evaluate.budgets[1]='x': expected int, got str"),
    ],
)
def test_a_wrong_type_is_named_with_what_was_expected(mapping, words):
    with pytest.raises(ConfigError) as caught:
        build_config(mapping)
    assert str(caught.value) == words


POSITIVE = {
    "rollout": "prompts_per_step slots page_size decode_steps prefill_chunk tensor partial_max_lag",
    "data": "max_prompt_tokens",
    "objective": "minibatches",
    "optimizer": "max_grad_norm max_skips eps",
    "reward": "workers",
    "calibrate": "n temperature batch_prompts",
    "probe": "start problems n max_candidates",
    "checkpoint": "every_steps keep_last grace_s",
    "evaluate": "n",
    "distributed": "heartbeat_timeout_s",
    "warmstart": "batch_size examples learning_rate hidden_size intermediate_size num_layers "
    "num_heads num_kv_heads head_dim max_position_tokens",
}
NOT_NEGATIVE = {
    "rollout": "num_pages prefill_budget max_logp_gap_mean save_every total_tokens data devices",
    "batch": "row_len rows max_resample",
    "model": "max_position_tokens",
    "objective": "clip_high kl_coef entropy_coef dual_clip",
    "optimizer": "learning_rate weight_decay",
    "calibrate": "max_response_tokens",
    "probe": "max_response_tokens rgz_tolerance cez_tolerance",
    "guards": "uninformative_steps zero_reward_steps steps",
    "evaluate": "every_steps temperature top_k max_response_tokens",
    "warmstart": "steps",
}


def signed_fields(table):
    return [f"{section}__{name}" for section, names in table.items() for name in names.split()]


@pytest.mark.parametrize("name", signed_fields(POSITIVE))
def test_fields_that_must_be_positive(name):
    section, field = name.split("__")
    default = getattr(getattr(RunConfig(), section), field)
    value = 0.0 if isinstance(default, float) else 0
    text = f"{section}.{field}={value}: must be above 0; the default is {default}"
    assert refusal(**{name: value}) == text


@pytest.mark.parametrize("name", signed_fields(NOT_NEGATIVE))
def test_fields_that_must_not_be_negative(name):
    section, field = name.split("__")
    value = -1.0 if isinstance(getattr(getattr(RunConfig(), section), field), float) else -1
    assert refusal(**{name: value}).startswith(f"{section}.{field}={value}: must not be negative")


TWO_STAGES = [{"temperature_rule": "match_diversity"}, {}]


@pytest.mark.parametrize(
    ("values", "field", "remedy"),
    [
        (
            {"rollout__responses_per_prompt": 1},
            "rollout.responses_per_prompt=1",
            "polaris evaluate",
        ),
        ({"rollout__top_p": 0.95}, "rollout.top_p=0.95", "set it to 1.0"),
        ({"rollout__top_k": 20}, "rollout.top_k=20", "set it to 0"),
        ({"rollout__data": 3, "rollout__slots": 8}, "rollout.slots=8", "rollout.data=3"),
        ({"rollout__tensor": 0}, "rollout.tensor=0", "above 0"),
        (
            {"rollout__data": 4, "rollout__num_pages": 7},
            "rollout.num_pages=7",
            "4 data shards needs at least 2",
        ),
        ({"rollout__reserve": 1.0}, "rollout.reserve=1.0", "in [0, 1)"),
        (  # 1,024 + 100 fit, the second stage's 1,024 + 200 do not
            {
                "rollout__num_pages": 72,
                "stages": [{"max_response_tokens": 100}, {"max_response_tokens": 200}],
            },
            "rollout.num_pages=72",
            "stages[1].max_response_tokens=200 make a sequence of 1224 tokens",
        ),
        (
            {
                "rollout__num_pages": 100,
                "rollout__data": 2,
                "stages": [{"max_response_tokens": 100}],
            },
            "rollout.num_pages=100",
            "set it to at least 144, or to 0",
        ),
        *(
            (
                {
                    "rollout__num_pages": 72,
                    "stages": [{"max_response_tokens": 100}],
                    f"{name}__max_response_tokens": 113,
                },
                "rollout.num_pages=72",
                f"{name}.max_response_tokens=113",
            )
            for name in ("evaluate", "probe", "calibrate")
        ),
        ({"rope__yarn__factor": 0.5}, "rope.yarn.factor=0.5", "1.0 (off) or more"),
        ({"rope__yarn__attention_factor": 0.0}, "rope.yarn.attention_factor=0.0", "above 0"),
        ({"rope__yarn__beta_slow": 0.0}, "rope.yarn.beta_slow=0.0", "above 0"),
        ({"rope__yarn__beta_fast": 1.0}, "rope.yarn.beta_fast=1.0", "rope.yarn.beta_slow=1"),
        (
            {
                "rope__yarn__original_max_position_embeddings": 0,
                "stages": [{}, {"rope_factor": 1.5}],
            },
            "rope.yarn.original_max_position_embeddings=0",
            "stages[1].rope_factor=1.5 needs the length",
        ),
        (
            {"rope__yarn__original_max_position_embeddings": 0, "evaluate__yarn": "both"},
            "rope.yarn.original_max_position_embeddings=0",
            "evaluate.yarn=both needs the length",
        ),
        ({"optimizer__b1": 1.0}, "optimizer.b1=1.0", "[0, 1)"),
        ({"optimizer__b2": -0.1}, "optimizer.b2=-0.1", "[0, 1)"),
        ({"batch__min_informative": 1.5}, "batch.min_informative=1.5", "[0, 1]"),
        ({"objective__dual_clip": 1.28}, "objective.dual_clip=1.28", "0 to turn it off"),
        ({"objective__minibatches": 2}, "objective.minibatches=2", "old_logprobs=recompute"),
        (
            {"objective__minibatches": 3, "objective__old_logprobs": "recompute"},
            "objective.minibatches=3",
            "must divide",
        ),
        (
            {
                "rollout__prompts_per_step": 4,
                "objective__minibatches": 8,  # divides the responses, but would make 4 updates
                "objective__old_logprobs": "recompute",
            },
            "objective.minibatches=8",
            "rollout.prompts_per_step=4",
        ),
        ({"warmstart__batch_size": 0}, "warmstart.batch_size=0", "above 0"),
        ({"warmstart__slip_rate": 0.61}, "warmstart.slip_rate=0.61", "[0, 0.6]"),
        ({"warmstart__slip_rate": -0.1}, "warmstart.slip_rate=-0.1", "[0, 0.6]"),
        ({"warmstart__seed": -1}, "warmstart.seed=-1", "[0, 2^63)"),
        ({"warmstart__seed": 2**63}, f"warmstart.seed={2**63}", "[0, 2^63)"),
        ({"data__arithmetic__seed": -1}, "data.arithmetic.seed=-1", "[0, 2^63)"),
        ({"reward__memory_limit_bytes": 1000}, "reward.memory_limit_bytes=1000", "67108864"),
        ({"reward__memory_limit_bytes": -1}, "reward.memory_limit_bytes=-1", "0 for no limit"),
        ({"reward__timeout_s": 0.0}, "reward.timeout_s=0.0", "above 0"),
        ({"probe__step": 0.0}, "probe.step=0.0", "set it to that or more"),
        ({"objective__tis_cap": -1.0}, "objective.tis_cap=-1.0", "0 (off), or to 1 or more"),
        ({"reward__timeout_s": 1e12}, "reward.timeout_s=1000000000000.0", "at most 86400"),
        ({"objective__clip_low": 0.0}, "objective.clip_low=0.0", "(0, 1)"),
        ({"objective__clip_low": 1.0}, "objective.clip_low=1.0", "(0, 1)"),
        ({"objective__clip_low": 2.0}, "objective.clip_low=2.0", "(0, 1)"),
        ({"probe__step": 1e-9}, "probe.step=1e-09", "at least 0.001 apart"),
        ({"probe__stop": 1e9}, "probe.stop=1000000000.0", "over 1000; lower it"),
        ({"probe__step": 0.0011}, "probe.stop=1.7", "over 1000; lower it, or raise probe.step"),
        ({"warmstart__num_heads": 5}, "warmstart.num_kv_heads=2", "divide warmstart.num_heads=5"),
        ({"warmstart__head_dim": 31}, "warmstart.head_dim=31", "be even"),
        ({"data__arithmetic__train": -1}, "data.arithmetic.train=-1", "0 is none"),
        ({"data__arithmetic__held_out": -1}, "data.arithmetic.held_out=-1", "0 is none"),
        ({"mesh__data": 0}, "mesh.data=0", "at least 1"),
        ({"mesh__context": -1}, "mesh.context=-1", "at least 1"),
        ({"mesh__tensor": 0}, "mesh.tensor=0", "at least 1"),
        ({"mesh__fsdp": 0}, "mesh.fsdp=0", "or -1 for the rest"),
        ({"batch__max_copies": -1}, "batch.max_copies=-1", "not be negative"),
        ({"objective__tis_cap": 0.5}, "objective.tis_cap=0.5", "0 (off), or to 1 or more"),
        ({"rollout__partial_share": 0.4}, "rollout.partial_share=0.4", "[0.5, 1]"),
        ({"rollout__partial_share": 1.1}, "rollout.partial_share=1.1", "[0.5, 1]"),
        ({"rollout__partial_max_lag": 0}, "rollout.partial_max_lag=0", "above 0"),
        ({"rollout__partial_rollouts": "drop"}, "rollout.partial_rollouts='drop'", "wait, carry"),
        (
            {"rollout__partial_rollouts": "carry"},
            "objective.old_logprobs='current'",
            "set it to sampler",
        ),
        (
            {"rollout__partial_rollouts": "carry", "objective__old_logprobs": "recompute"},
            "objective.old_logprobs='recompute'",
            "set it to sampler",
        ),
        (
            {
                "rollout__partial_rollouts": "carry",
                "objective__old_logprobs": "sampler",
                "objective__tis_cap": 0.0,
            },
            "objective.tis_cap=0.0",
            "set it above 0",
        ),
        (
            {"rollout__kv_dtype": "int8"},
            "objective.old_logprobs='current'",
            "rollout.kv_dtype=int8 samples tokens from a rounded policy, each against the log-prob "
            "that it was sampled with; set it to sampler",
        ),
        (
            {
                "rollout__kv_dtype": "int8",
                "objective__old_logprobs": "sampler",
                "objective__tis_cap": 0.0,
            },
            "objective.tis_cap=0.0",
            "set it above 0",
        ),
        ({"stages": []}, "stages=[]", "at least one stage"),
        ({"stages": [{"steps": 0}]}, "stages[0].steps=0", "at least 1"),
        ({"stages": [{"max_response_tokens": 0}]}, "stages[0].max_response_tokens=0", "at least 1"),
        ({"stages": [{}, {"temperature": 0.0}]}, "stages[1].temperature=0.0", "above 0"),
        ({"stages": [{"drop_above": 1.1}]}, "stages[0].drop_above=1.1", "1.0 drops nothing"),
        ({"stages": [{"rope_factor": 0.5}]}, "stages[0].rope_factor=0.5", "1.0 (off)"),
        ({"stages": TWO_STAGES}, "stages[0].temperature_rule='match_diversity'", "use fixed"),
        ({"model__max_position_tokens": 8192}, "stages[0].max_response_tokens=39936", "lower the"),
        ({"batch__row_len": 1024}, "batch.row_len=1024", "set it to 0 or to at least that"),
        ({"probe__start": 0.6, "probe__stop": 0.79}, "probe.stop=0.79", "set it to 0.9 or more"),
        ({"probe__stop": 0.0}, "probe.stop=0.0", "at least 3 temperatures"),
        ({"probe__rgz_share": 0.2}, "probe.cez_share=0.14", "rgz_share=0.2 or more"),
        (
            {"probe__rgz_tolerance": 0.2, "probe__cez_tolerance": 0.1},
            "probe.cez_tolerance=0.1",
            "rgz_tolerance=0.2 or more, or to 0 for probe.cez_share",
        ),
        ({"evaluate__top_p": 0.0}, "evaluate.top_p=0.0", "(0, 1]"),
        ({"evaluate__length_edges": (32, 16)}, "evaluate.length_edges=(32, 16)", "ascend"),
        ({"evaluate__length_edges": ()}, "evaluate.length_edges=()", "at least one"),
        ({"evaluate__budgets": (8, 8)}, "evaluate.budgets=(8, 8)", "ascend"),
        ({"evaluate__budgets": (0, 8)}, "evaluate.budgets=(0, 8)", "at least 1"),
        (
            {"evaluate__budgets": (8, 64), "evaluate__max_response_tokens": 32},
            "evaluate.budgets=(8, 64)",
            "leave that budget out",
        ),
        (
            {"model__max_position_tokens": 40_960, "evaluate__max_response_tokens": 90_000},
            "evaluate.max_response_tokens=90000",
            "set evaluate.yarn=on",
        ),
    ],
    ids=lambda value: value.split("=")[0] if isinstance(value, str) and "=" in value else None,
)
def test_each_rule_names_field_value_and_remedy(values, field, remedy):
    text = refusal(**values)
    assert text.startswith(f"{field}: ")
    assert remedy in text


def test_the_budget_rule_states_the_numbers():
    text = refusal(model__max_position_tokens=40_000)
    assert "data.max_prompt_tokens=1024" in text
    assert "40960 positions" in text
    assert "model.max_position_tokens=40000" in text


@pytest.mark.parametrize(
    "values",
    [
        {"objective__minibatches": 4, "objective__old_logprobs": "sampler"},
        {"rollout__partial_rollouts": "carry", "objective__old_logprobs": "sampler"},
        {"rollout__kv_dtype": "int8", "objective__old_logprobs": "sampler"},
        {"objective__dual_clip": 0.0},
        {"model__max_position_tokens": 40_960},
        {"batch__row_len": 40_960},
        {"evaluate__top_p": 0.95, "evaluate__top_k": 20},
        {"model__max_position_tokens": 40_960, "evaluate__max_response_tokens": 90_000}
        | {"evaluate__yarn": "on"},
        {"stages": [{}, {"temperature_rule": "match_diversity"}]},
        {"rollout__num_pages": 72, "stages": [{"max_response_tokens": 112}]},
        {"rollout__num_pages": 144, "rollout__data": 2, "stages": [{"max_response_tokens": 112}]},
        {"rope__yarn__original_max_position_embeddings": 0},
        {"objective__tis_cap": 1.0},
        {"objective__tis_cap": 0.0},
        {"batch__substitute": False},
        {"seed": -1},
        {"evaluate__seed": -1},
        {"warmstart__slip_rate": 0.6},
        {"reward__memory_limit_bytes": 0},
        {"reward__memory_limit_bytes": 1 << 26},
        {"reward__timeout_s": 86_400.0},
        {"probe__start": 0.001, "probe__stop": 1.0, "probe__step": 0.001},
        {"probe__cez_tolerance": 1.0},
        {"probe__rgz_tolerance": 0.2},
        {"guards__stop": "entropy, clip"},
    ],
)
def test_values_on_the_allowed_side_pass(values):
    build_config(with_values(**values))


def test_the_pool_is_asked_again_once_the_shards_are_known():
    config = build_config({"rollout": {"num_pages": 72}, "stages": [{"max_response_tokens": 112}]})
    check_pages(config, 1)
    with pytest.raises(ConfigError, match="each of 2 data shards has room for 560"):
        check_pages(config, 2)


def test_the_packed_row_holds_the_longest_stage():
    config = build_config({"stages": [{"max_response_tokens": n} for n in (100, 300, 200)]})
    assert row_len_tokens(config) == 1024 + 300
    assert row_len_tokens(build_config({"batch": {"row_len": 50_000}})) == 50_000


def changed(config: RunConfig, name: str) -> RunConfig:
    """`config` with the dotted leaf changed to another value of its type."""
    leaf = config_fields(config)[name]
    choices = {"data.problems": "b.jsonl", "model.path": "b", "evaluate.problems": "c.jsonl"}
    if isinstance(leaf, bool):
        value = not leaf
    elif isinstance(leaf, int | float):
        value = leaf + 1
    elif isinstance(leaf, list):
        value = (1, 2, 3)
    else:
        value = choices.get(name, f"{leaf}-other")

    def replace(section, parts):
        head, *rest = parts
        index = re.fullmatch(r"(\w+)\[(\d+)\]", head)
        if index:
            items = list(getattr(section, index[1]))
            items[int(index[2])] = replace(items[int(index[2])], rest)
            return dataclasses.replace(section, **{index[1]: tuple(items)})
        inner = replace(getattr(section, head), rest) if rest else value
        return dataclasses.replace(section, **{head: inner})

    return replace(config, name.split("."))


TWO = RunConfig(stages=(StageSection(), StageSection()))


@pytest.mark.parametrize("name", sorted(config_fields(TWO)))
def test_the_hash_moves_with_every_binding_field_and_no_other(name):
    other = changed(TWO, name)
    assert config_fields(other)[name] != config_fields(TWO)[name]
    assert (config_hash(other) != config_hash(TWO)) == (name in binding_fields(TWO))


def test_what_a_resume_may_change():
    free = set(config_fields(TWO)) - set(binding_fields(TWO))
    for name in (
        "reward.workers",
        "checkpoint.every_steps",
        "evaluate.n",
        "metrics.wandb",
        "rollout.num_pages",
        "rollout.slots",
        "stages[1].steps",
    ):
        assert name in free
    for name in ("seed", "stages[0].steps", "stages[1].temperature", "optimizer.learning_rate"):
        assert name not in free


def test_the_hash_is_stable_text():
    assert re.fullmatch(r"[0-9a-f]{16}", config_hash(TWO))
    assert config_hash(TWO) == config_hash(build_config({"stages": [{}, {}]}))


def test_everything_public_is_importable_from_one_place():
    for name in config_module.__all__:
        assert hasattr(config_module, name)
    sections = {type(getattr(RunConfig(), f.name)) for f in dataclasses.fields(RunConfig)}
    missing = {
        s.__name__
        for s in sections
        if dataclasses.is_dataclass(s) and s.__name__ not in config_module.__all__
    }
    assert missing == set()
