"""The notebooks, and what a run of them must repeat.

    python -m tests.support.notebooks [NAME ...]

runs all of them, or those that are named, and stores them with their outputs (`make notebooks`).

A cell tagged `deterministic` prints the same on every machine. Other outputs depend on the last
bits of a trained model or on the clock.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
DETERMINISTIC = "deterministic"
# A notebook ends within a minute on two quiet cores; a loaded machine may take many times that.
CELL_TIMEOUT_S = 900
_PROGRESS = re.compile(r"(?m)^.*: \d+/\d+ .*(?:tokens|s left\))\n")


def read(name: str) -> NotebookNode:
    """The stored notebook of a name such as 01_quickstart."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(book: NotebookNode) -> list[NotebookNode]:
    """The cells of code, in order."""
    return [cell for cell in book.cells if cell.cell_type == "code"]


def is_deterministic(cell: NotebookNode) -> bool:
    """True if the cell prints the same on every machine."""
    return DETERMINISTIC in cell.metadata.get("tags", ())


def printed(cell: NotebookNode, name: str = "stdout") -> str:
    """What a cell printed on a stream, and, with stdout, the text of its last expression."""
    texts = [o.text for o in cell.outputs if o.output_type == "stream" and o.name == name]
    if name == "stdout":
        texts += [o.data.get("text/plain", "") for o in cell.outputs if "execution_count" in o]
    return "".join(texts)


def has_figure(cell: NotebookNode) -> bool:
    """True if the cell shows a picture."""
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def run(name: str, folder: Path) -> NotebookNode:
    """The notebook with the outputs of a fresh run in `folder`, where its files are left.

    Raises:
        CellExecutionError: a cell failed; the error has its traceback.
    """
    book = read(name)
    client = NotebookClient(
        book,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=environment())
    return book


def environment() -> dict[str, str]:
    """A reader's environment: one device, figures inline, `polaris` on the path."""
    found = dict(os.environ)
    found |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), found["PATH"]])
    found.pop("MPLBACKEND", None)
    return found


def stored_form(book: NotebookNode, folder: Path) -> NotebookNode:
    """The notebook without what is the machine's: paths, kernel, addresses, lines of progress."""
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in code_cells(book):
        for output in cell.outputs:
            for holder, field in ((output, "text"), (output.get("data", {}), "text/plain")):
                if field in holder:
                    text = holder[field].replace(f"{folder}{os.sep}", "").replace(str(folder), ".")
                    text = re.sub(r" at 0x[0-9a-f]+", "", text)
                    holder[field] = _PROGRESS.sub("", text)
    return book


def main() -> None:
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            book = stored_form(run(name, Path(folder)), Path(folder))
        nbformat.write(book, FOLDER / f"{name}.ipynb")
        print(name)


if __name__ == "__main__":
    main()
