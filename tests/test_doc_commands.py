"""Every command line in README and docs is run here, or listed with what it needs.

`RUNS` has the lines that the slow test runs, in order, in one folder with a stranger's model and
problems; what it adds makes them short. `NEEDS` has the others, each with the reason. A quick test
keeps both complete, and reads every line that names a config with the command's own parser.
docs/blog_map.md has a test of its own that runs its lines, tests/test_blog_map.py.
"""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from polaris_jax.commands.flags import parse
from tests.support.stranger import as_gsm8k, random_qwen3

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    # Results and notebook have the lines of their time.
    *(
        p
        for p in sorted((ROOT / "docs").rglob("*.md"))
        if p.parent.name not in ("results", "notebook")
    ),
]
TESTED_ELSEWHERE = ("docs/blog_map.md",)
TINY = {
    "warmstart.steps": 4,
    "data.arithmetic.train": 8,
    "data.arithmetic.held_out": 4,
    "rollout.prompts_per_step": 2,
    "calibrate.n": 2,
    "stages[0].steps": 1,
    "stages[0].temperature_rule": "fixed",
    "stages[1].steps": 1,
    "stages[1].temperature_rule": "fixed",
}
MINE = {
    "rollout.prompts_per_step": 2,
    "stages[0].steps": 1,
    "calibrate.max_response_tokens": 16,
    "evaluate.max_response_tokens": 16,
}
MY = "--config=my.py --workdir=runs/my"
TINY_MINE = "--config=configs/tiny_cpu.py --workdir=runs/mine"
BENCHMARK = "--config.evaluate.problems=mine.jsonl --config.evaluate.n=8"

# Lines that are run, in order, and the fields that make them short.
RUNS: dict[str, dict[str, object]] = {
    "polaris doctor": {},
    "polaris init my.py --model=my_model --data=problems.jsonl --hardware=cpu": {},
    f"polaris prepare {MY}": MINE,
    f"polaris calibrate {MY}": MINE,
    f"polaris train {MY}": MINE,
    f"polaris evaluate {MY} --checkpoint=latest": MINE,
    f"polaris report {MY}": MINE,
    "polaris status runs/my": {},
    "polaris show runs/my": {},
    "polaris train --config=my.py:quick --workdir=runs/quick": {},
    "polaris convert --from runs/my/checkpoints --to export": {},
    "polaris publish runs/my --export=export": {},
    "polaris grade --input=responses.jsonl --gold_field=gold --out=graded.jsonl": {},
    "polaris prepare --config=tiny_cpu --workdir=runs/tiny": {},
    "polaris completion --help": {},
    "polaris generate --model=my_model --input=prompts.jsonl --out=answers.jsonl --n=4 "
    "--max_tokens=16": {},
    "polaris prepare --config=configs/tiny_cpu.py --workdir=runs/own "
    "--config.data.problems=problems.jsonl": {},
    "polaris prepare --config=configs/tiny_cpu.py --workdir=runs/sums "
    "--config.data.problems=my_problems.py:sums": {},
    f"polaris train {TINY_MINE} --config.reward.function=my_reward.py:score "
    "--config.reward.correct_at=0.5": TINY,
    f"polaris evaluate {TINY_MINE} --tag=before {BENCHMARK}": TINY,
    f"polaris evaluate {TINY_MINE} --checkpoint=latest {BENCHMARK}": TINY,
    "launch/local.sh --processes 2 --dry-run -- train --config=configs/tiny_cpu.py "
    "--workdir=workdirs/two": {},
    "bash launch/gpu_slurm.sbatch --dry-run train --config=configs/polaris_4b.py:h100:32 "
    "--workdir=runs/4b": {},
}
SLURM, TPU = "a Slurm cluster; tests/launch/test_clusters.py runs it dry", "a TPU pod; likewise"
PLUGIN = "jax's plugin for the chip; tests/plan/test_pods.py compiles such plans (slow)"
FORM = "nothing: a form with words to fill in, or a make target"
NEEDS: dict[str, str] = {
    "polaris init my.py --model=DIR --data=FILE --hardware=h100:8": FORM,
    "polaris COMMAND --help=SECTION": FORM,
    "polaris prepare --against=mine.jsonl": FORM,
    "polaris prepare --source=my.csv,problem=text,answer=result": FORM,
    **dict.fromkeys(
        (
            "polaris prepare --config=configs/tiny_cpu.py --workdir=runs/own "
            "--source=my.csv,problem=frage,answer=loesung,cap=5000 "
            "--source=openai/gsm8k,config=main,name=grade_school --against=aime24 "
            "--against=aime25",
            "polaris prepare --config=configs/polaris_7b.py --workdir=runs/7b --pass_rates=0.1:0.9 "
            "--source=POLARIS-Project/Polaris-Dataset-53K,pass_rate=difficulty",
        ),
        "the Hugging Face Hub; tests/commands/test_prepare.py has such sources as files",
    ),
    "polaris show DIR --wrong": FORM,
    "polaris report runs/seed0 runs/seed1 runs/seed2 --out=compared": "runs of three seeds; "
    "tests/report/test_runs.py overlays three",
    "polaris grade --explain ANSWER GOLD": FORM,
    "polaris grade --input=F --out=F --audit=sympy": FORM,
    "make drills SEED=n": FORM,
    **dict.fromkeys(
        (
            "polaris calibrate --config=configs/polaris_4b.py --workdir=runs/4b",
            "polaris calibrate --config=configs/polaris_4b.py --workdir=runs/4b "
            "--checkpoint=latest --tag=after",
            "polaris probe --config=configs/polaris_4b.py --workdir=runs/4b",
            "polaris probe --config=configs/polaris_4b.py --workdir=runs/4b --checkpoint=latest "
            "--tag=stage1",
        ),
        "a pod; tests/measure runs these commands on a small model",
    ),
    "polaris evaluate --config=configs/polaris_4b.py:released:short --workdir=runs/released": (
        "the network and an accelerator; tests/config reads the settings"
    ),
    **dict.fromkeys(
        (
            "polaris evaluate --config=configs/polaris_4b.py:final --workdir=runs/4b "
            "--checkpoint=base,latest --tag=before,after "
            "--config.evaluate.problems=aime24+aime25",
            "polaris positions --config=configs/polaris_4b.py:final --workdir=runs/4b "
            "--checkpoint=latest --tag=after "
            "--config.evaluate.problems=aime24+aime25",
        ),
        "an accelerator; tests/measure/test_evaluations.py runs such lines on a small model",
    ),
    **dict.fromkeys(
        (
            "polaris evaluate --compare runs/4b/before_eval.json runs/4b/after_eval.json --out "
            "figures",
            "polaris calibrate --compare runs/4b runs/4b/after_difficulty.parquet --out figures",
            "polaris probe --compare runs/4b runs/4b/stage1_probe.json --out figures",
        ),
        "what the commands before it made on a pod; tests/measure compares small ones",
    ),
    "polaris serve --model=runs/4b/export --port=8000": "a model; tests/serve starts servers",
    "pip install 'polaris_jax[serve]'": "the network",
    "pip install 'polaris_jax[wandb]'": "the network",
    f"polaris train {MY} --config.metrics.wandb=True --config.metrics.wandb_name=first "
    "--config.metrics.wandb_tags=grpo,small": (
        "an account at W&B; tests/metrics/test_trackers.py has a stand-in"
    ),
    "make notebooks": "minutes; tests/notebooks runs them",
    "make docs": "nothing: tests compare the pages that it makes",
    "make site": "mkdocs; a CI job of its own runs it",
    "make venv": "the network; CI runs it as a part of make test",
    "make test": "it runs the tests",
    "make test-quick": "it runs the tests",
    "make test-slow": "it runs the tests",
    "make lint": "a part of make test",
    "make drills": "an hour",
    "make bench-check": "an idle machine; tests/benchmarks/test_record.py has its rules",
    "make test-oldest": "the network, and a second environment",
    "make dist": "the network; tests/test_wheel.py builds a wheel",
    "make demo-real": "the network; tests/launch/test_demo.py runs its script with a stand-in",
    "make docker-steps": "the network",
    "make venv-tpu": "the network",
    "make venv-cuda12": "the network",
    "make venv-cuda13": "the network",
    "pip install --no-deps . && pip install numpy mpmath": (
        "the network; tests/test_light_install.py grades with these two alone"
    ),
    "docker build --target cpu -t polaris_jax:cpu .": "Docker; make docker-steps runs its steps",
    'docker run --rm -v "$PWD/runs:/work" polaris_jax:cpu prepare --config=tiny_cpu '
    "--workdir=demo": "Docker",
    "make audit": "the network",
    f"polaris probe {MY}": "a model that solves something: a random one has no best temperature",
    "polaris ablate rescue.py --out runs/rescue": "an hour; tests/ablate runs smaller tables",
    "polaris ablate configs/ablations/full/temperature.py --out /mnt/ablations/temperature "
    "--list": "a shared disk at /mnt; tests/ablate reads every table of configs/",
    "polaris train --config=configs/polaris_4b.py:h100:8 --workdir=runs/4b "
    "--config.evaluate.problems=aime24": "eight H100s",
    "polaris train --config=configs/polaris_4b.py --workdir=runs/4b_stage2 "
    "--config.evaluate.problems=aime24 --stage 2 --from runs/4b/checkpoints": (
        "a pod; tests/test_partial_run.py begins at a later stage"
    ),
    "polaris plan --config=configs/polaris_4b.py:h100:8 --topology=h100:8": PLUGIN,
    "polaris plan --config=configs/polaris_4b.py --topology=v6e:8x8 --search": PLUGIN,
    "sbatch --nodes=4 launch/gpu_slurm.sbatch train --config=configs/polaris_4b.py:h100:32 "
    "--workdir=runs/4b --config.evaluate.problems=aime24": SLURM,
    "launch/tpu_pod.sh --name POD --zone ZONE --setup": TPU,
    "launch/tpu_pod.sh --name POD --zone ZONE -- train "
    "--config=configs/polaris_4b.py:v5p:2x2x4 --workdir=gs://BUCKET/4b "
    "--config.evaluate.problems=gs://BUCKET/aime24.jsonl": TPU,
    "envsubst < launch/gke_jobset.yaml | kubectl apply --dry-run=server -f -": (
        "a cluster with JobSet; tests/launch/test_clusters.py fills the file in"
    ),
}


def command_lines(text: str) -> list[str]:
    """The command lines in a page's code blocks, and those with an argument between backticks."""
    text = text.replace("\\\n", " ")
    words = r"(?:\.venv/bin/)?(?:polaris|make|launch/\S+|sbatch|bash|envsubst|pip|docker)"
    found = re.findall(rf"^(?: {{4}})?({words} [^|\n]*?(?:\|[^|\n]*)?)$", text, re.MULTILINE)
    found += re.findall(r"`((?:polaris|make|launch/\S+|sbatch) [^`\n]*[-=/][^`\n]*)`", text)
    lines = [" ".join(re.sub(r"\s+#.*", "", line).split()) for line in found]
    return [line for line in lines if not re.match(r"make (a|an|the|it|some)\b", line)]


def all_lines(pages: list[Path] = PAGES) -> dict[str, str]:
    """{line: a page that has it}."""
    return {
        line: page.relative_to(ROOT).as_posix()
        for page in pages
        for line in command_lines(page.read_text())
    }


def test_every_line_is_run_or_listed():
    pages = [p for p in PAGES if p.relative_to(ROOT).as_posix() not in TESTED_ELSEWHERE]
    found = all_lines(pages)
    assert {line: page for line, page in found.items() if line not in {**RUNS, **NEEDS}} == {}
    assert [line for line in {**RUNS, **NEEDS} if line not in found] == []
    assert not RUNS.keys() & NEEDS.keys()


def test_a_line_is_seen():
    text = "    polaris train \\\n        --config=a.py  # so\n"
    text += "`make x-y` and make it\n\nmake docs  # b\n"
    assert command_lines(text) == ["polaris train --config=a.py", "make docs", "make x-y"]


class Parsed(Exception):
    """A command line has been read."""


@pytest.mark.parametrize(
    "line", [x for x in all_lines() if " --config=" in x and not x.startswith("docker")]
)
def test_the_parser_takes_it(line, monkeypatch):
    """Flags, fields and values are real, also of a line that needs a pod."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    words = words[words.index("--") + 1 :] if "--" in words else words
    known = ("prepare", "calibrate", "probe", "train", "evaluate", "positions", "report", "plan")
    at = next(i for i, word in enumerate(words) if word in known)
    name, rest = words[at], words[at + 1 :]
    for shown, used in (("my.py:quick", "configs/tiny_cpu.py"), ("my.py", "configs/tiny_cpu.py")):
        rest = [word.replace(f"--config={shown}", f"--config={used}") for word in rest]
    rest = [word.replace("--config=...", "--config=configs/tiny_cpu.py") for word in rest]
    rest = [word for word in rest if "gs://" not in word] + ["--workdir=W"] * ("gs://" in line)
    module = importlib.import_module(f"polaris_jax.commands.{name}")
    parsed = []

    def and_no_more(*words, **options):
        parsed.append(parse(*words, **options))
        raise Parsed  # as far as a command gets here

    monkeypatch.setattr(module, "parse", and_no_more)
    with pytest.raises(Parsed):
        module.main(rest)
    assert [command.name for command in parsed] == [name]


def python_blocks() -> dict[str, str]:
    """{file: text} of the code blocks whose first line is the name of a file."""
    found = {}
    for page in PAGES:
        for name, body in re.findall(
            r"```python\n# (\w+\.py)\n(.*?)```", page.read_text(), re.DOTALL
        ):
            found[name] = body
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_they_run(tmp_path):
    random_qwen3(tmp_path / "my_model")
    as_gsm8k(tmp_path / "problems")
    rows = [{"id": f"q{i}", "problem": f"What is {i} plus 1?", "answer": i + 1} for i in range(4)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [{"prompt": row["problem"]} for row in rows]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    for name, text in python_blocks().items():
        (tmp_path / name).write_text(text)
    for folder in ("configs", "launch", "polaris_jax"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    env |= {"POLARIS_PYTHON": sys.executable}  # of the launchers
    for line, fields in RUNS.items():
        words = shlex.split(line) + [f"--config.{name}={value}" for name, value in fields.items()]
        if words[0] == "polaris":
            words = [sys.executable, "-m", "polaris_jax", *words[1:]]
        if "--input=responses.jsonl" in words:
            shutil.copy(tmp_path / "runs/my/responses.jsonl", tmp_path)
        done = subprocess.run(
            words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
