"""Who may import whom, checked over every import of the tree and by loading packages for real."""

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys

import pytest

from tests.support.import_rules import HOST_ONLY, breaches, imports_of
from tests.tolerances import IMPORT_S

ROOT = pathlib.Path(__file__).resolve().parents[1]


def tree(*folders: str) -> dict[str, str]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def test_the_tree_keeps_the_rules():
    sources = tree("polaris_jax", "configs", "benchmarks", "launch")
    assert len(sources) > 10
    # These sides of benchmarks run in environments of their own and import what is there.
    peers = {
        "trl_side": "torch",
        "sampling/transformers_side": "torch",
        "sampling/vllm_side": "vllm",
    }
    for name, package in peers.items():
        assert package in sources.pop(f"benchmarks/peers/{name}.py")
    assert breaches(sources) == []


def test_jax_config_is_set_nowhere_in_the_tests_but_conftest():
    found = [line for line in breaches(tree("tests")) if "jax.config" in line]
    assert found == []


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        ("rollout/a.py", "import polaris_jax.train.state", "rollout must not import train"),
        ("train/a.py", "from polaris_jax import rollout", "train must not import rollout"),
        ("train/a.py", "from ..rollout import sampler", "train must not import rollout"),
        ("batch/a.py", "from polaris_jax.models import Decoder", "batch must not import models"),
        ("data/a.py", "def f():\n    import polaris_jax.models", "data must not import models"),
        ("reward/a.py", "import polaris_jax.models", "reward must not import models"),
        ("explore/a.py", "import polaris_jax.models", "explore must not import models"),
        ("stages/a.py", "import polaris_jax.models", "stages must not import models"),
        ("metrics/a.py", "import polaris_jax.loop", "only commands may import loop"),
        ("measure/a.py", "from polaris_jax import loop", "only commands may import loop"),
        ("loop.py", "from polaris_jax.commands import probe", "only __main__ may import commands"),
        ("plan/a.py", "from polaris_jax.commands import flags", "only __main__ may import"),
        ("step.py", "from polaris_jax import loop", "only commands may import loop"),
        ("stage_change.py", "import polaris_jax.loop", "must not import upwards"),
        ("measure/a.py", "from polaris_jax.step import step", "measure must not import upwards"),
        ("state.py", "from polaris_jax.measure import solve", "state must not import upwards"),
        ("assemble.py", "from polaris_jax.step import step", "assemble must not import upwards"),
        ("evaluate/a.py", "from polaris_jax import state", "evaluate must not import upwards"),
        ("run/a.py", "import polaris_jax.assemble", "run must not import upwards"),
        ("models/a.py", "import polaris_jax.train", "models must not import upwards"),
        ("sharding/a.py", "import polaris_jax.models", "sharding must not import upwards"),
        ("config/a.py", "import polaris_jax.sharding", "config must not import upwards"),
        ("system/a.py", "import polaris_jax.data", "system must not import upwards"),
        ("records.py", "import polaris_jax.batch", "records must not import upwards"),
        ("train/a.py", "import polaris_jax.plan.fit", "only commands may import plan"),
        ("loop.py", "from polaris_jax import plan", "only commands may import plan"),
        ("data/a.py", "import polaris_jax.demo", "only assemble and commands may import demo"),
        ("plan/a.py", "from polaris_jax.demo import x", "only assemble and commands may"),
        ("__init__.py", "import polaris_jax.records", "__init__ imports nothing"),
        ("measure/a.py", "from polaris_jax.testing import fakes", "fakes serve tests only"),
        ("commands/a.py", "from configs import base", "nothing imports configs"),
        (
            "commands/a.py",
            "import importlib\nimportlib.import_module('configs.base')",
            "nothing imports configs",
        ),
        ("rollout/a.py", "import jetstream.engine", "only polaris_jax.rollout.jetstream"),
        ("models/a.py", "def f():\n    import torch", "torch has no place"),
        ("metrics/a.py", "from tensorflow import summary", "tensorflow has no place"),
        ("rollout/jetstream.py", "import seqio", "seqio has no place"),
        ("reward/a.py", "import jax", "host code must not bring in jax"),
        ("batch/a.py", "def f():\n    import jax.numpy as jnp", "must not bring in jax"),
        ("stages/a.py", "from jaxtyping import Array", "must not bring in jax"),
        ("records.py", "import optax", "must not bring in jax"),
        ("data/filters.py", "def f():\n    import grain", "must not bring in jax"),
        ("data/loader.py", "import grain.python", "inside functions"),
        ("data/loader.py", "def f():\n    import jax", "must not bring in jax"),
        ("train/a.py", "import jax\njax.config.update('x', 1)", "jax.config is set in commands/"),
        ("train/a.py", "from jax import config", "jax.config is set in commands/"),
    ],
)
def test_each_rule_bites(path, source, words):
    found = breaches({f"polaris_jax/{path}": source})
    assert any(words in line for line in found), found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "commands/train.py",
            "from polaris_jax import loop\nimport jax\njax.config.update('a', 1)",
        ),
        ("commands/a.py", "from polaris_jax import demo, plan, measure, step"),
        ("__main__.py", "from polaris_jax.commands import main"),
        ("measure/probe.py", "from polaris_jax.rollout import Sampler\nimport polaris_jax.explore"),
        ("measure/a.py", "from polaris_jax.assemble import Parts"),
        ("step.py", "from polaris_jax import batch, measure, state, stages"),
        ("loop.py", "from polaris_jax import step, stage_change, state"),
        ("assemble.py", "from polaris_jax import demo, rollout, run"),
        ("system/a.py", "from polaris_jax.config import ConfigError"),
        ("train/a.py", "import polaris_jax.models, polaris_jax.sharding, polaris_jax.config"),
        ("evaluate/a.py", "from polaris_jax.rollout import Sampler"),
        ("rollout/jetstream.py", "def f():\n    from jetstream.engine import engine_api"),
        ("data/loader.py", "def f():\n    import grain.python as grain"),
        ("stages/a.py", "from jaxtyping import Float\nfrom polaris_jax.records import Graded"),
        ("models/decoder.py", "from .layers import rope\nfrom polaris_jax.sharding import x"),
    ],
)
def test_what_the_rules_allow(path, source):
    assert breaches({f"polaris_jax/{path}": source}) == []


def test_a_host_package_may_not_reach_jax_through_others():
    sources = {
        "polaris_jax/explore/__init__.py": "from polaris_jax.metrics import mean",
        "polaris_jax/metrics/__init__.py": "from polaris_jax.metrics import mean",
        "polaris_jax/metrics/mean.py": "def f():\n    import jax",
    }
    assert breaches(sources) == [
        "polaris_jax/explore/__init__.py: host code reaches jax by "
        "polaris_jax.explore -> polaris_jax.metrics.mean"
    ]


def test_relative_imports_are_resolved():
    found = imports_of("polaris_jax/a/__init__.py", "from . import b\nfrom ..c import d")
    assert [(i.module, i.name) for i in found] == [("polaris_jax.a", "b"), ("polaris_jax.c", "d")]
    found = imports_of("polaris_jax/a/m.py", "from .b import c")
    assert [(i.module, i.name) for i in found] == [("polaris_jax.a.b", "c")]


def loaded_after(statements: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `statements`."""
    script = f"{statements}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_the_package_is_light():
    heavy = {"jax", "torch", "tensorflow", "numpy", "transformers", "sympy", "matplotlib"}
    assert loaded_after("import polaris_jax").isdisjoint(heavy)


@pytest.mark.slow
def test_importing_the_package_takes_no_time():
    """Processor seconds of a process, over those of bare Python: a busy machine is no failure."""

    def median_s(statement: str) -> float:
        seconds = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", statement], cwd=ROOT, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return statistics.median(seconds)

    assert median_s("import polaris_jax") - median_s("pass") < IMPORT_S


def test_host_packages_load_no_jax():
    every_module = """
import importlib, pkgutil
for name in {names}:
    module = importlib.import_module(f"polaris_jax.{{name}}")
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), module.__name__ + "."):
        importlib.import_module(found.name)
import polaris_jax.config
"""
    loaded = loaded_after(every_module.format(names=sorted(HOST_ONLY)))
    assert loaded.isdisjoint({"jax", "jaxlib", "flax", "grain", "torch", "tensorflow"})


def test_the_subprocess_check_sees_jax_when_it_is_there():
    assert "jax" in loaded_after("import jax")


def test_no_module_loads_torch_or_tensorflow():
    names = [p.removesuffix(".py").replace("/", ".") for p in tree("polaris_jax")]
    modules = [n.removesuffix(".__init__") for n in names if not n.endswith("__main__")]
    loaded = loaded_after(f"import importlib\nfor n in {modules!r}: importlib.import_module(n)")
    assert loaded.isdisjoint({"torch", "tensorflow", "seqio"})


def test_importing_and_loading_a_tokenizer_print_nothing_and_keep_the_environment(tmp_path):
    """Outside of a command too, with torch missing (transformers advises to install it)."""
    text = f"""
import os, pkgutil, sys
sys.modules["torch"] = None  # as if it were not installed
before = dict(os.environ)
import polaris_jax
for module in pkgutil.iter_modules(polaris_jax.__path__):
    if module.ispkg and module.name != "demo":
        __import__(f"polaris_jax.{{module.name}}")
from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.models.tokenizer import load_tokenizer
build_tokenizer().save_pretrained({str(tmp_path)!r})
load_tokenizer({str(tmp_path)!r})
changed = set(os.environ.items()) ^ set(before.items())
assert not {{name for name, _ in changed if name.startswith("TRANSFORMERS")}}, changed
"""
    names = ("TRANSFORMERS_NO_ADVISORY_WARNINGS", "TRANSFORMERS_VERBOSITY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
