"""Reads the built site and fails if a link on it leads to no page, file or heading."""

import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

from mkdocs.exceptions import PluginError


class _Page(HTMLParser):
    """The anchors and the links of a page."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links += [found[name] for name in ("href", "src") if found.get(name)]


def on_post_build(config):
    """Raises PluginError if a link within the site is dead."""
    dead = dead_links(Path(config.site_dir))
    if dead:
        raise PluginError("dead links:\n" + "\n".join(dead))


def dead_links(site):
    """`page: link` for each dead link of a site; links to other sites are not read."""
    site = site.resolve()
    pages = {file: _Page(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")}
    dead = []
    for file, page in pages.items():
        if file.name == "404.html":  # its links begin at the root of a server
            continue
        for link in page.links:
            parts = urllib.parse.urlparse(link)
            if parts.scheme or parts.netloc:
                continue
            path, anchor = (urllib.parse.unquote(p) for p in (parts.path, parts.fragment))
            target = (file.parent / path).resolve() if path else file
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].anchors if target in pages else {anchor}
            if not target.exists() or (anchor and anchor not in known):
                dead.append(f"{file.relative_to(site)}: {link}")
    return dead
