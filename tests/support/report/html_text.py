"""What a browser would make of the HTML of a report, for tests."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

VOID = ("meta", "img", "link", "br", "input")


class HtmlText(HTMLParser):
    """Reads a page.

    Attributes:
        open: tags without an end.
        ids: ids of elements.
        links: href and src, whatever they lead to.
        texts: text outside of scripts and styles.
        policy: the page's Content-Security-Policy.
        scripts: content of the scripts that run.
        data: the JSON block with id data.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.policy = ""
        self.data: dict[str, Any] = {}
        self._attributes: dict[str, str | None] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in self._attributes:
            self.ids.add(str(self._attributes["id"]))
        self.links += [
            str(v) for k, v in attrs if k in ("src", "href", "srcset") and v and v[0] != "#"
        ]
        if self._attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(self._attributes["content"])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "script" and self._attributes.get("id") == "data":
            self.data = json.loads(data)
        elif inside == "script" and "type" not in self._attributes:
            self.scripts.append(data)
        elif inside not in ("script", "style"):
            self.texts.append(data)
