"""Links, paths and names in the documents lead somewhere; decisions stay short."""

import pathlib
import re

import pytest

from polaris_jax.commands.flags import parse
from polaris_jax.config import SETTINGS, ConfigError, declared_name

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Results and notebook name files as they were at the time.
PRESENT = [page for page in PAGES if page.parent.name not in ("results", "notebook")]
DECISIONS = [page for page in PAGES if page.parent.name == "decisions" and page.stem != "README"]
MOST_LINES = 15  # of a decision, blank lines left out


def named(page: pathlib.Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def sections(text: str) -> list[tuple[str, list[str]]]:
    """Each heading and its lines of text, those of lower headings left out."""
    text = re.sub(r"```.*?```", lambda code: code[0].replace("#", " "), text, flags=re.DOTALL)
    parts = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return [
        (heading, [line for line in body.splitlines() if line.strip()])
        for heading, body in zip(parts[1::2], parts[2::2], strict=True)
    ]


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def dead_links(text: str, folder: pathlib.Path, own: pathlib.Path) -> list[str]:
    """Relative links that lead to no file, or to no heading of a page."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"\w+:", link):
            continue
        path, _, heading = link.partition("#")
        target = folder / path if path else own
        found = target.exists()
        if found and heading:
            found = heading in [anchor(h) for h, _ in sections(target.read_text())]
        dead += [] if found else [link]
    return dead


def missing_paths(text: str) -> list[str]:
    """Paths in backticks that do not exist."""
    folders = "polaris_jax|tests|configs|launch|benchmarks|notebooks|docs"
    paths = re.findall(rf"`((?:{folders})/[\w/.*\-]*)[^`\n]*`", text)
    return [path for path in paths if not any(ROOT.glob(path.rstrip("./")))]


def missing_modules(text: str) -> list[str]:
    """Names `polaris_jax.x.y` in backticks that are neither a module nor a name in one."""
    missing = []
    for dotted in re.findall(r"`(polaris_jax(?:\.\w+)+)", text):
        place, names = ROOT, dotted.split(".")
        while names and (place / names[0]).is_dir():
            place /= names.pop(0)
        if names and (place / f"{names[0]}.py").exists():
            place /= f"{names.pop(0)}.py"
        source = place if place.is_file() else place / "__init__.py"
        if names and not re.search(rf"\b{names[0]}\b", source.read_text()):
            missing.append(dotted)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_a_file_and_a_heading(page):
    assert dead_links(page.read_text(), page.parent, page) == []


@pytest.mark.parametrize("page", PRESENT, ids=named)
def test_paths_and_modules_exist(page):
    text = page.read_text()
    assert missing_paths(text) == []
    assert missing_modules(text) == []


def test_the_architecture_names_what_exists():
    package = "\n".join(path.read_text() for path in (ROOT / "polaris_jax").rglob("*.py"))
    spans = re.findall(r"`([A-Za-z_][\w.]*)`", (ROOT / "docs/architecture.md").read_text())
    named = [span for span in spans if not span.endswith((".json", ".jsonl"))]
    names = {name for span in named for name in span.split(".")}
    assert len(names) > 50
    assert [n for n in sorted(names) if not re.search(rf"\b{re.escape(n)}\b", package)] == []


def other_trainers():
    """(their name, our field) pairs of the tables of coming_from.md."""
    lines = (ROOT / "docs/howto/coming_from.md").read_text().splitlines()
    rows = [line.split("|") for line in lines if line.startswith("| `")]
    pairs = [(re.findall(r"`([^`]+)`", row[1]), re.findall(r"`([^`]+)`", row[2])) for row in rows]
    fields = [(theirs, ours[0]) for theirs, ours in pairs if ours and not ours[0].startswith("--")]
    return [(name, field) for theirs, field in fields for name in theirs]


def test_the_settings_named_for_other_trainers_exist():
    names = [name for _, name in other_trainers()]
    assert len(names) > 30
    assert [name for name in names if declared_name(name) not in SETTINGS] == []


@pytest.mark.parametrize(("theirs", "ours"), other_trainers())
def test_the_error_for_a_name_of_another_trainer_names_ours(theirs, ours, monkeypatch):
    monkeypatch.chdir(ROOT)
    line = ["--config=configs/tiny_cpu.py", "--workdir=w", f"--config.{theirs}=1"]
    with pytest.raises(ConfigError) as caught:
        parse("train", line, doc="")
    assert ours in str(caught.value).partition("there is no such field; did you mean ")[2]


def test_the_errors_that_are_explained_exist():
    """Texts in code, with what is put in left out: a line may be split over several literals."""
    page = (ROOT / "docs/howto/errors.md").read_text()
    lines = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    package = "".join(path.read_text() for path in (ROOT / "polaris_jax").rglob("*.py"))
    texts = re.sub(r'"\s*f?"', "", package)
    assert len(lines) > 15
    assert [line for line in lines if line not in texts] == []


@pytest.mark.parametrize("page", DECISIONS, ids=named)
def test_a_decision_is_short(page):
    found = sections(page.read_text())
    assert [(heading, len(lines)) for heading, lines in found if len(lines) > MOST_LINES] == []


@pytest.mark.parametrize(
    ("index", "folders"),
    [("docs", [".", "howto"]), ("docs/decisions", ["."]), ("docs/notebook", ["."])],
    ids=["docs", "decisions", "notebook"],
)
def test_the_index_names_every_page(index, folders):
    text = (ROOT / index / "README.md").read_text()
    pages = [page for folder in folders for page in (ROOT / index / folder).glob("*.md")]
    names = [page.name for page in pages if page.name != "README.md"]
    assert [name for name in names if f"{name})" not in text] == []


def test_dead_ends_are_seen():
    assert dead_links(
        "[a](nowhere.md) [b](README.md#no-such) [c](#nor-this)", ROOT, ROOT / "README.md"
    )
    assert not dead_links("[a](README.md) `[b](c)` [d](https://e.f)", ROOT, ROOT / "README.md")
    assert missing_paths("`polaris_jax/nowhere.py`") == ["polaris_jax/nowhere.py"]
    assert missing_paths("`configs/tiny_cpu.py:final`") == []
    assert missing_modules("`polaris_jax.nowhere`") == ["polaris_jax.nowhere"]
    assert missing_modules("`polaris_jax.records.Group`, `polaris_jax.reward`") == []
