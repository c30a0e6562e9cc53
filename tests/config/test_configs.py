"""The files in configs/ build, are locked, and carry the recipe's numbers."""

import ast
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

from polaris_jax.config import build_config, config_fields
from tests.tolerances import SAMPLER_LOGPROB_ATOL

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs"
CONFIGS = sorted(FOLDER.glob("[!_]*.py"))
TARGETS = runpy.run_path(str(FOLDER / "_targets.py"))


def load(name, *target):
    path = next(p for p in CONFIGS if p.stem == name)
    spec = importlib.util.spec_from_file_location(f"config_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*target)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_builds_and_is_locked(path):
    config = load(path.stem)
    build_config(config)
    assert config.is_locked
    assert all(stage.is_locked for stage in config.stages)
    with pytest.raises(AttributeError):
        config.rollout.no_such_field = 1


SHOW_COMMANDS = [
    *CONFIGS,
    FOLDER.parent / "README.md",
    *sorted((FOLDER.parent / "polaris_jax" / "commands").glob("*.py")),
    *sorted((FOLDER.parent / "launch").glob("*.s*")),
]


def shown_commands(path):
    """The train and evaluate commands of a file's docstring or text, each on one line."""
    text = path.read_text()
    text = (ast.get_docstring(ast.parse(text)) or "") if path.suffix == ".py" else text
    for line in re.sub(r"\\\n[# ]*", " ", text).splitlines():
        for command in re.split(r"(?=\bpolaris )", line):
            if re.search(r"\b(train|evaluate)\b.* --config=configs/", command):
                yield command


@pytest.mark.parametrize("path", SHOW_COMMANDS, ids=lambda p: p.name)
def test_the_commands_it_shows_have_what_they_score_on(path):
    for command in shown_commands(path):
        name, _, target = re.search(r"--config=configs/(\w+)\.py(:(\S+))?", command).groups()
        config = build_config(load(name, *([target] if target else [])))
        scored = " evaluate " in command or config.evaluate.every_steps
        named = "--config.evaluate.problems=" in command or config.evaluate.problems
        assert named or not scored or config.data.arithmetic.held_out, command


def test_the_shown_commands_are_found():
    found = {path.name for path in SHOW_COMMANDS if list(shown_commands(path))}
    assert found >= {"README.md", "train.py", "evaluate.py", "gpu_slurm.sbatch", "polaris_4b.py"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_commands_it_shows_share_a_workdir(path):
    """prepare, calibrate and train; a smoke test and another run have one of their own."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    commands = [c for c in text.replace("\\\n", " ").split("\n") if "--workdir=" in c]
    full = [
        c for c in commands if not re.search(r"\.py:(tiny|plain|recipe|two_digits|released)\b", c)
    ]
    assert len({re.search(r"--workdir=(\S+)", c)[1] for c in full}) <= 1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The recipe's table for one model; the share of each stage in the steps is ours.

    Attributes:
        path: the base model.
        max_position_tokens: prompt and response of the longest stage.
        stages: (steps, max response tokens, rollout temperature, validation temperature).
    """

    path: str
    max_position_tokens: int
    stages: list[tuple[int, int, float, float]]


RECIPE = {
    "polaris_4b": Recipe(
        "Qwen/Qwen3-4B",
        52_224 + 1024,
        [(300, 39_936, 1.4, 1.2), (200, 48_128, 1.45, 1.4), (200, 52_224, 1.5, 1.4)],
    ),
    "polaris_7b": Recipe(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        31_744 + 1024,
        [(300, 15_360, 0.7, 0.6), (200, 23_552, 1.0, 0.8), (200, 31_744, 1.1, 0.8)],
    ),
    "polaris_1p7b": Recipe(
        "Qwen/Qwen3-1.7B", 48_128 + 1024, [(400, 39_936, 1.5, 1.2), (300, 48_128, 1.55, 1.4)]
    ),
}
# Of every model: each number of the recipe that a config holds, and each switch whose other value
# would be another recipe.
COMMON = {
    "model.dtype": "auto",  # bfloat16 on TPUs and GPUs; master weights are float32 always
    "model.remat": "layer",
    "data.max_prompt_tokens": 1024,
    "rollout.prompts_per_step": 128,
    "rollout.responses_per_prompt": 8,
    "rollout.top_p": 1.0,
    "rollout.top_k": 0,
    "rollout.partial_rollouts": "wait",  # one step's batch is one policy's
    "batch.rescue": True,
    "batch.substitute": True,
    "batch.min_informative": 1 / 3,
    "batch.on_scarce": "train",
    "objective.clip_low": 0.2,
    "objective.clip_high": 0.28,
    "objective.dual_clip": 3.0,
    "objective.old_logprobs": "current",
    "objective.tis_cap": 2.0,
    "objective.minibatches": 1,
    "objective.aggregation": "token_mean",
    "objective.std": "std",
    "objective.baseline": "mean",
    "objective.mask_truncated": False,
    "objective.kl_coef": 0.0,
    "objective.entropy_coef": 0.0,
    "optimizer.learning_rate": 1e-6,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.01,
    "optimizer.max_grad_norm": 1.0,
    "optimizer.moment_dtype": "float32",
    "reward.mode": "train",
    "reward.control": "none",
    "calibrate.n": 8,
    "calibrate.temperature": 0.6,
    "calibrate.preset": "drop_perfect",
    "checkpoint.every_steps": 10,
    "evaluate.every_steps": 10,
    "evaluate.n": 8,
    "evaluate.top_p": 1.0,
    "evaluate.top_k": 0,
    "mesh.context": 1,  # sequence-parallel degree; docs/decisions/update.md: stage 3 of the 4B
    "rope.yarn.factor": 1.5,
    "rope.yarn.attention_factor": 1.0,
    "rope.yarn.original_max_position_embeddings": 32_768,
}


@pytest.mark.parametrize("name", RECIPE)
def test_the_recipes_numbers(name):
    recipe, config = RECIPE[name], build_config(load(name))
    fields = config_fields(config)
    assert {field: fields[field] for field in COMMON} == COMMON
    numbers = [
        (s.steps, s.max_response_tokens, s.temperature, s.evaluate_temperature)
        for s in config.stages
    ]
    assert numbers == recipe.stages
    assert sum(s.steps for s in config.stages) == 700
    assert config.model.path == recipe.path
    assert config.model.max_position_tokens == recipe.max_position_tokens
    assert config.evaluate.temperature == recipe.stages[0][-1]
    for stage in config.stages:
        assert stage.reset_optimizer
        assert (stage.temperature_rule, stage.rope_factor) == ("fixed", 1.0)
        assert (stage.drop_above, stage.drop_statistic) == (0.9, "stage_mean")


@pytest.mark.parametrize("pod", TARGETS["PODS"])
@pytest.mark.parametrize("name", RECIPE)
def test_a_pod_changes_only_how_the_work_is_divided(name, pod):
    plain, aimed = (
        config_fields(build_config(load(name))),
        config_fields(build_config(load(name, pod))),
    )
    changed = {field for field in plain if plain[field] != aimed[field]}
    assert changed <= {
        "mesh.context", "rollout.tensor", "rollout.slots", "rollout.page_size", "batch.row_len"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("benchmark", "k"),
    [("", 32), ("aime24", 32), ("aime25", 32), ("minerva", 4), ("olympiad", 4), ("amc23", 8)],
)
def test_the_final_evaluation_is_the_recipes(benchmark, k):
    plain = build_config(load("polaris_4b"))
    final = build_config(load("polaris_4b", "final" + (f":{benchmark}" if benchmark else "")))
    e, yarn = final.evaluate, final.rope.yarn
    assert (e.temperature, e.top_p, e.top_k, e.max_response_tokens) == (1.4, 1.0, 20, 90_000)
    assert (e.n, e.yarn) == (k, "on")
    assert (yarn.factor, yarn.original_max_position_embeddings) == (1.5, 32_768)
    assert dataclasses.replace(final, evaluate=plain.evaluate) == plain  # so any workdir takes it


@pytest.mark.parametrize("name", ["polaris_7b", "polaris_1p7b"])
def test_no_final_evaluation_is_made_up(name):
    with pytest.raises(ValueError, match="states no final evaluation of this model"):
        load(name, "final")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("polaris_4b", (0.6, 0.95, 20, 38_912)),
        ("polaris_1p7b", (0.6, 0.95, 20, 38_912)),
        ("polaris_7b", (0.6, 0.95, 0, 31_744)),
    ],
)
def test_a_base_model_is_evaluated_as_its_makers_recommend(name, settings):
    plain, base = build_config(load(name)), build_config(load(name, "base:minerva"))
    e = base.evaluate
    assert (e.temperature, e.top_p, e.top_k, e.max_response_tokens) == settings
    assert (e.n, e.yarn, e.every_steps) == (4, "off", plain.evaluate.every_steps)
    assert dataclasses.replace(base, evaluate=plain.evaluate) == plain


@pytest.mark.parametrize(
    ("target", "n", "problems"),
    [
        ("released", 32, "aime24+aime25"),
        ("released:short", 4, "aime24+aime25"),
        ("released:amc23", 8, "amc23"),
    ],
)
def test_the_released_checkpoint_is_evaluated_as_the_recipe_states(target, n, problems):
    final, config = (build_config(load("polaris_4b", t)) for t in ("final", target))
    e = config.evaluate
    assert config.model.path == "POLARIS-Project/Polaris-4B-Preview"
    assert (e.n, e.problems, e.yarn, e.own_rope, e.beside) == (n, problems, "both", "drop", "blog")
    for name in ("temperature", "top_p", "top_k", "max_response_tokens"):
        assert getattr(e, name) == getattr(final.evaluate, name)
    assert config.rope == final.rope


@pytest.mark.parametrize("name", ["polaris_7b", "polaris_1p7b"])
def test_no_released_settings_are_made_up(name):
    with pytest.raises(ValueError, match="no settings are stated for a released checkpoint"):
        load(name, "released")


@pytest.mark.parametrize("name", RECIPE)
def test_tiny_keeps_stages_rules_and_objective(name):
    plain, tiny = build_config(load(name)), build_config(load(name, "tiny"))
    assert [s.temperature for s in tiny.stages] == [s.temperature for s in plain.stages]
    assert all(s.steps == 2 and s.max_response_tokens <= 72 for s in tiny.stages)
    assert (tiny.objective, tiny.optimizer) == (plain.objective, plain.optimizer)
    assert tiny.model.path == ""


def test_an_unknown_target_is_refused_with_the_known_ones():
    known = r"take one of v5p:2x2x1.*tiny, or match_diversity"
    with pytest.raises(ValueError, match=rf":v9z: no such target; {known}"):
        load("polaris_4b", "v9z")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tiny_run_trains_both_stages_to_the_end(tmp_path):
    """As a user calls it: one CPU device, and problems and base model made on the spot."""
    environ = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    config = "configs/polaris_1p7b.py:tiny"
    command = [sys.executable, "-m", "polaris_jax", "train", f"--config={config}"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}"],
        cwd=FOLDER.parent,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    def refuse(constant):
        raise AssertionError(f"{constant} in metrics.jsonl: a missing value is null")

    text = (tmp_path / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert [(line["step"], line["stage"]) for line in lines] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert [line["rollout/temperature"] for line in lines] == [1.5, 1.5, 1.55, 1.55]
    assert all(0 < line["rollout/mean_length"] <= 64 for line in lines)
    assert max(line["rollout/reward_mean"] for line in lines) > 0  # the warm start taught it
    updates = [line for line in lines if line["update/loss"] is not None]
    assert updates and all(
        line["update/skipped"] == 0 < line["update/grad_norm"] for line in updates
    )
    assert max(line["rollout/logp_gap_mean"] for line in updates) < SAMPLER_LOGPROB_ATOL
    assert all(line["batch/context_imbalance"] == 1 for line in updates)  # one context shard
    stages = json.loads((tmp_path / "stages.json").read_text())
    assert [(s["first_step"], s["last_step"]) for s in stages] == [(0, 1), (2, 3)]
    assert [s["max_response_tokens"] for s in stages] == [56, 64]
    assert {d["kind"] for d in stages[1]["decisions"]} >= {"drop_easy", "reset_optimizer"}


@pytest.mark.parametrize("name", RECIPE)
@pytest.mark.parametrize("target", ["match_diversity", "match_diversity:h100:8"])
def test_temperatures_by_measurement_change_nothing_else(name, target):
    rest = target.partition(":")[2]
    plain, reset = build_config(load(name, rest)), build_config(load(name, target))
    rules = [stage.temperature_rule for stage in reset.stages]
    assert rules == [plain.stages[0].temperature_rule, *["match_diversity"] * (len(rules) - 1)]
    as_before = [
        dataclasses.replace(stage, temperature_rule=old.temperature_rule)
        for stage, old in zip(reset.stages, plain.stages, strict=True)
    ]
    assert dataclasses.replace(reset, stages=tuple(as_before)) == plain
