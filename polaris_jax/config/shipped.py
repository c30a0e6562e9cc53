"""Where the configs that come with the package are: beside it in a checkout, or inside it."""

from __future__ import annotations

from pathlib import Path

SHIPPED = "shipped_configs"  # folder in an installed package; a checkout has configs/ beside it


def shipped_folder() -> Path | None:
    """The folder of the configs that come with the package; None if they are not installed."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "configs", package / SHIPPED):
        if (folder / "tiny_cpu.py").is_file():  # else it is some other project's folder
            return folder
    return None


def shipped_configs() -> dict[str, str]:
    """{name: path} of the configs that come with the package, in a checkout or installed."""
    folder = shipped_folder()
    paths = [] if folder is None else sorted(folder.glob("*.py"))
    return {path.stem: str(path) for path in paths if not path.name.startswith("_")}
