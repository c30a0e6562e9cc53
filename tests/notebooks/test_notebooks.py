"""The notebooks run from top to bottom, show something, and are committed without outputs."""

import ast
import importlib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from polaris_jax import models, rollout

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
NAMES = ("01_quickstart", "02_temperature_zones", "03_long_context_yarn")
IN_MAKE_TEST = ("01_quickstart",)
# Each ends within half a minute on two quiet cores; a loaded machine may take many times that.
CELL_TIMEOUT_S = 600
pytestmark = pytest.mark.timeout(900)


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_every_notebook_is_here():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_committed_without_outputs_and_defines_nothing(name):
    for cell in code_cells(read(name)):
        assert cell.outputs == []
        assert cell.execution_count is None
        for line in cell.source.splitlines():
            assert not line.lstrip().startswith(("def ", "class ", "async def ")), line


@pytest.mark.parametrize("name", NAMES)
def test_what_it_imports_of_ours_is_there_and_what_it_names_is_imported(name):
    source = "\n".join(cell.source for cell in code_cells(read(name)))
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polaris_jax"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
                imported.add(alias.name)
    names = {n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)}
    ours = {name for name in dir(rollout) + dir(models) if name[0].isupper()}
    assert names & ours <= imported


@pytest.mark.parametrize(
    "name",
    [
        name if name in IN_MAKE_TEST else pytest.param(name, marks=pytest.mark.slow)
        for name in NAMES
    ],
)
def test_runs_and_shows_a_figure(name, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "")  # one device, as a reader has
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own shows figures inline
    book = read(name)
    client = NotebookClient(
        book,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute()  # a cell that errors raises CellExecutionError, with its traceback
    outputs = [output for cell in code_cells(book) for output in cell.outputs]
    figures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert figures
    printed = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    assert printed
    complaints = [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    assert not complaints
