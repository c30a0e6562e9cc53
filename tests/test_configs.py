"""The files in configs/ build, are locked, and carry the recipe's numbers."""

import ast
import dataclasses
import importlib.util
import pathlib
import re
import runpy

import pytest

from polaris_jax.config import build_config, config_fields

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "configs"
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
    *sorted((FOLDER.parent / "polaris_jax" / "cli").glob("*.py")),
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
        named = "--config.evaluate.problems=" in command
        assert named or not scored or config.data.arithmetic.held_out, command


def test_the_shown_commands_are_found():
    found = {path.name for path in SHOW_COMMANDS if list(shown_commands(path))}
    assert found >= {"README.md", "train.py", "evaluate.py", "gpu_slurm.sbatch", "polaris_4b.py"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_commands_it_shows_share_a_workdir(path):
    """prepare, calibrate and train at full size; a smoke test has one of its own."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    commands = [c for c in text.replace("\\\n", " ").split("\n") if "--workdir=" in c]
    full = [c for c in commands if ":tiny" not in c]
    assert len({re.search(r"--workdir=(\S+)", c)[1] for c in full}) <= 1


# recipe: max response tokens, rollout temperature and validation temperature of every stage.
RECIPE = {
    "polaris_4b": [(39_936, 1.4, 1.2), (48_128, 1.45, 1.4), (52_224, 1.5, 1.4)],
    "polaris_7b": [(15_360, 0.7, 0.6), (23_552, 1.0, 0.8), (31_744, 1.1, 0.8)],
    "polaris_1p7b": [(39_936, 1.5, 1.2), (48_128, 1.55, 1.4)],
}


@pytest.mark.parametrize("name", RECIPE)
def test_the_recipes_numbers(name):
    config = build_config(load(name))
    numbers = [
        (s.max_response_tokens, s.temperature, s.evaluate_temperature) for s in config.stages
    ]
    assert numbers == RECIPE[name]
    assert config.evaluate.temperature == RECIPE[name][0][2]
    assert all(s.reset_optimizer and s.drop_above == 0.9 for s in config.stages)
    assert (config.rollout.prompts_per_step, config.rollout.responses_per_prompt) == (128, 8)
    assert (config.rollout.top_p, config.rollout.top_k) == (1.0, 0)
    assert config.data.max_prompt_tokens == 1024
    assert config.model.dtype == "bfloat16"
    assert config.model.remat == "layer"
    o = config.optimizer
    assert (o.learning_rate, o.b1, o.b2, o.eps) == (1e-6, 0.9, 0.999, 1e-8)
    assert (o.weight_decay, o.max_grad_norm) == (0.01, 1.0)
    j = config.objective
    assert (j.clip_low, j.clip_high, j.dual_clip) == (0.2, 0.28, 3.0)
    assert (j.kl_coef, j.entropy_coef, j.minibatches) == (0.0, 0.0, 1)
    assert (j.old_logprobs, j.aggregation, j.tis_cap) == ("current", "token_mean", 2.0)
    assert (config.checkpoint.every_steps, config.evaluate.every_steps) == (10, 10)
    assert config.evaluate.n == 8
    assert (config.rope.yarn.factor, config.rope.yarn.attention_factor) == (1.5, 1.0)
    assert config.rope.yarn.original_max_position_embeddings == 32_768
    assert config.batch.min_informative == pytest.approx(1 / 3)


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


@pytest.mark.parametrize("name", RECIPE)
def test_tiny_keeps_stages_rules_and_objective(name):
    plain, tiny = build_config(load(name)), build_config(load(name, "tiny"))
    assert [s.temperature for s in tiny.stages] == [s.temperature for s in plain.stages]
    assert all(s.steps == 2 and s.max_response_tokens <= 72 for s in tiny.stages)
    assert (tiny.objective, tiny.optimizer) == (plain.objective, plain.optimizer)
    assert tiny.model.path == ""


def test_an_unknown_target_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r":v9z: no such target; take one of v5p:2x2x1.*or tiny"):
        load("polaris_4b", "v9z")
