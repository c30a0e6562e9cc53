"""What mkdocs needs beside docs/: the API reference, pages of the repository's top, links.

The pages in docs/ are written for a reader of the repository, and stay as they are. Links out of
docs/ lead to a page of the site if there is one; those to sources become plain text.
"""

import posixpath
import re
from pathlib import Path

from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# Pages of the repository's top, and where they stand on the site.
TOP = {
    "README.md": "project/readme.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
}
# Public names: what users' code calls.
API = {
    "models": "Architectures, weights and log-probs.",
    "rollout": "The sampler.",
    "reward": "Grading.",
    "batch": "Advantages, rescue and substitution.",
    "explore": "Diversity, zones and temperatures.",
    "records": "What packages hand to one another.",
    "data": "Problems and prompts.",
    "config": "Configs.",
    "checkpoint": "Checkpoints.",
    "loop": "A run.",
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


class _Nested(InlineProcessor):
    """Leaves `[P][R]`, two axes of nested lists, as text: in Markdown it would be a link."""

    def handleMatch(self, m, data):  # the name that Markdown calls
        return m[0], m.start(0), m.end(0)


class _NestedLists(Extension):
    def extendMarkdown(self, md):
        md.inlinePatterns.register(_Nested(r"\[\w+\]\[\w+\]", md), "nested_lists", 175)


def on_config(config):
    """Adds the sections API and Project to the navigation, and guides that it does not name."""
    docs = ROOT / "docs"
    config.markdown_extensions.append(_NestedLists())

    def pages(folder):
        names = sorted(path.name for path in (docs / folder).glob("*.md"))
        return [f"{folder}/{name}" for name in names if name != "README.md"]

    named = set(re.findall(r"[\w/]+\.md", str(config.nav)))
    guides = [page for folder in (".", "howto") for page in pages(folder)]
    guides = [page.removeprefix("./") for page in guides]
    how_to = next(section["How to"] for section in config.nav if "How to" in section)
    how_to += [page for page in guides if page not in named]
    config.nav += [
        {"API": [{f"polaris_jax.{name}": f"api/{name}.md"} for name in API]},
        {
            "Project": [
                *({Path(name).stem.capitalize(): page} for name, page in TOP.items()),
                {"Decisions": ["decisions/README.md", *pages("decisions")]},
                {"Results": ["results/index.md", *pages("results")]},
                {"Notebook": ["notebook/README.md", *pages("notebook")]},
            ]
        },
    ]
    return config


def on_files(files, config):
    """Adds the pages that do not lie in docs/."""

    def add(path, text):
        files.append(File.generated(config, path, content=text))

    for name, page in TOP.items():
        add(page, (ROOT / name).read_text())
    for name, about in API.items():
        module = f"polaris_jax.{name}"
        add(f"api/{name}.md", f"# {module}\n\n{about}\n\n::: {module}\n{_options(name)}")
    results = sorted((ROOT / "docs/results").glob("*.md"))
    lines = [f"- [{_heading(path)}]({path.name})" for path in results]
    add("results/index.md", "# Results\n\n" + "\n".join(lines) + "\n")
    return files


def _options(name):
    lines = ["    options:", "      show_root_heading: false", "      show_root_toc_entry: false"]
    if (ROOT / "polaris_jax" / name).is_dir():
        lines.append("      members: " + str(_public(name)))
    return "\n".join(lines) + "\n"


def _public(name):
    """The names in a package's __all__, read and not run."""
    import ast

    tree = ast.parse((ROOT / "polaris_jax" / name / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return sorted(ast.literal_eval(node.value))
    return []


def _heading(path):
    first = path.read_text().splitlines()[0]
    return first.lstrip("# ").strip()


def on_page_markdown(markdown, page, config, files):
    """Turns links that lead out of docs/ into links of the site, or into text."""
    at = page.file.src_uri
    origin = next((name for name, place in TOP.items() if place == at), f"docs/{at}")
    here = posixpath.dirname(origin)

    def turned(match):
        image, text, link = match.groups()
        if re.match(r"\w+:|#", link):
            return match[0]
        path, mark, heading = link.partition("#")
        target = posixpath.normpath(posixpath.join(here, path))
        place = _on_site(target)
        if place is None:
            return text if text.startswith("`") else f"`{target}`" if image else text
        relative = posixpath.relpath(place, posixpath.dirname(at) or ".")
        return f"{image}[{text}]({relative}{mark}{heading})"

    parts = re.split(r"(```.*?```|`[^`\n]*`(?!\]))", markdown, flags=re.DOTALL)
    return "".join(part if i % 2 else _LINK.sub(turned, part) for i, part in enumerate(parts))


def _on_site(target):
    """Where a path of the repository stands on the site; None if it does not."""
    if target in TOP:
        return TOP[target]
    if not target.startswith("docs"):
        return None
    inside = target.removeprefix("docs").lstrip("/")
    if (ROOT / target).is_dir():
        page = "index.md" if inside == "results" else "README.md"
        return f"{inside}/{page}" if inside != "howto" else page
    return inside
