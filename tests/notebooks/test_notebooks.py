"""The notebooks run from top to bottom, show something, and say again what they are stored with."""

import ast
import importlib
import re

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from polaris_jax import models, rollout
from tests.support.notebooks import (
    FOLDER,
    ROOT,
    code_cells,
    has_figure,
    is_deterministic,
    printed,
    read,
    run,
)

NAMES = (
    "01_quickstart",
    "02_your_model_and_data",
    "03_data_difficulty",
    "04_temperature_zones",
    "05_one_grpo_step",
    "06_long_context_yarn",
    "07_sampler_internals",
)
IN_MAKE_TEST = ("07_sampler_internals",)
MOST_BYTES = 300_000
# Modules that are no package's public face, by the notebooks that look inside.
INTERNALS = {
    "06_long_context_yarn": {
        "polaris_jax.demo.arithmetic",
        "polaris_jax.demo.tiny_tokenizer",
        "polaris_jax.demo.warmstart",
        "polaris_jax.models.layers",
    },
    "07_sampler_internals": {
        "polaris_jax.rollout.pages",
        "polaris_jax.rollout.samples",
        "polaris_jax.rollout.scheduler",
        "polaris_jax.rollout.settings",
    },
}
pytestmark = pytest.mark.timeout(3000)


def python_of(name: str) -> ast.Module:
    """The Python of a notebook, magics translated as IPython does."""
    translate = TransformerManager().transform_cell
    return ast.parse("\n".join(translate(cell.source) for cell in code_cells(read(name))))


def test_every_notebook_is_here():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_stored_as_run_from_top_to_bottom_and_small(name):
    cells = code_cells(read(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(map(has_figure, cells)) or name == "02_your_model_and_data"
    assert any(is_deterministic(cell) and printed(cell) for cell in cells)
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert len(text) < MOST_BYTES
    assert not re.search(r"/(tmp|home|root|Users|work)/", text)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_installs_in_colab_and_nowhere_else(name):
    first = code_cells(read(name))[0]
    condition, action = [line for line in first.source.splitlines() if line][1:]
    assert condition.startswith('if "google.colab" in sys.modules:')
    assert action.strip().startswith("%pip install --quiet ./polaris_jax  # clone")
    assert first.outputs == []


@pytest.mark.parametrize("name", NAMES)
def test_imports_what_packages_offer_and_what_it_names(name):
    tree = python_of(name)
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polaris_jax"):
            module = importlib.import_module(node.module or "")
            names = {alias.name for alias in node.names}
            if node.module not in INTERNALS.get(name, ()):
                assert names <= set(getattr(module, "__all__", dir(module))), node.module
                assert (node.module or "").count(".") == 1
            assert all(hasattr(module, one) for one in names), f"{node.module} lacks one of {names}"
            imported |= names
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    ours = {name for name in dir(rollout) + dir(models) if name[0].isupper()}
    assert names & ours <= imported


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    for cell in read(name).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)", cell.source):
                assert (FOLDER / target).exists(), target
            for path in re.findall(r"`((?:polaris_jax|docs|configs)/[\w./]+)`", cell.source):
                assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "name",
    [
        name if name in IN_MAKE_TEST else pytest.param(name, marks=pytest.mark.slow)
        for name in NAMES
    ],
)
def test_runs_anew_and_says_the_same(name, tmp_path):
    stored, anew = code_cells(read(name)), code_cells(run(name, tmp_path))
    for before, now in zip(stored, anew, strict=True):
        assert not printed(now, "stderr"), now.source
        assert has_figure(before) == has_figure(now), now.source
        assert bool(printed(before)) == bool(printed(now)), now.source
        if is_deterministic(now):
            assert printed(now) == printed(before), now.source
