"""report.html is harmless, whatever a model has written, and needs nothing but itself."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re

import pytest

from polaris_jax.report import make_report
from polaris_jax.report.page import escaped, safe_json
from polaris_jax.report.plots import library, script_hash
from tests.support.report.html_text import HtmlText
from tests.support.report.synthetic import STAGES, hostile_row, write_rollouts

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202egnp.exe\u2066"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("page") / f"run {HOSTILE.replace('/', '|')}"
    run_dir.mkdir()
    lines = [{"step": s, "stage": 0, "rollout/reward_mean": 0.5} for s in range(3)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (run_dir / "run.json").write_text(
        json.dumps(
            {
                "config": {"model.path": HOSTILE, "data.system_prompt": HOSTILE},
                "commit": HOSTILE,
                "starts": [{"time": HOSTILE, "ended": f"failed: {HOSTILE}"}],
            }
        )
    )
    (run_dir / "warnings.json").write_text(
        json.dumps([{"text": HOSTILE, "count": 1, "first_s": 0.0, "last_s": 0.0}])
    )
    write_rollouts(run_dir, 1, [[hostile_row(HOSTILE)]])
    return make_report(run_dir).html.read_text()


def test_no_text_of_a_run_becomes_markup(page):
    read = HtmlText(page)
    assert read.open == []
    assert "alert(1)</script>" not in page and "<img" not in page
    assert len(read.scripts) == 1 and "alert" not in read.scripts[0]
    group = read.data["responses"][0]
    shown = [group["question"], group["gold"], group["id"], group["responses"][0]["text"]]
    assert all("</script><script>alert(1)" in text for text in shown)


def test_marks_that_turn_the_direction_of_writing_are_visible(page):
    data = json.dumps(HtmlText(page).data, ensure_ascii=False)
    for text in (page, data):
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)
    assert r"\u202egnp.exe\u2066" in HtmlText(page).data["responses"][0]["responses"][0]["text"]


def test_the_page_asks_for_nothing(page):
    read = HtmlText(page)
    names = page.replace("http://www.w3.org/2000/svg", "")  # a name that is fetched by nobody
    assert not re.search("https?:|//cdn", names)
    assert all(link.startswith("figures/") for link in read.links)
    policy = dict(part.strip().split(" ", 1) for part in read.policy.split(";"))
    assert policy["default-src"] == "'none'"
    assert "connect-src" not in policy  # default-src stands for it
    for rule in ("script-src", "img-src"):
        assert "*" not in policy[rule] and "unsafe" not in policy[rule]


def test_the_policy_allows_the_two_scripts_and_no_other(page):
    read = HtmlText(page)
    packed, allowed = library()
    assert packed in page
    script = gzip.decompress(base64.b64decode(packed)).decode()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert allowed == f"sha256-{digest}"
    assert "plotly.js v" in script[:200]
    sources = re.search("script-src (.*?);", read.policy)[1].split()
    assert sources == [f"'{script_hash(read.scripts[0])}'", f"'{allowed}'"]


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "]]>", "\u2028", "&lt;"])
def test_json_in_the_page_is_ascii_without_markup(text):
    found = safe_json({text: [text]})
    assert not set(found) & set("<>&") and found.isascii()
    assert json.loads(found) == {text: [text]}


def test_a_number_that_json_lacks_becomes_null(tmp_path):
    with pytest.raises(ValueError):
        safe_json(float("nan"))
    losses = enumerate((float("nan"), 0.1, 0.2))
    lines = [{"step": step, "stage": 0, "update/loss": loss} for step, loss in losses]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (tmp_path / "stages.json").write_text(json.dumps([STAGES[0] | {"temperature": float("inf")}]))
    (chart,) = HtmlText(make_report(tmp_path).html.read_text()).data["charts"]
    assert chart["stages"][0][0]["temperature"] is None
    assert chart["panels"][0]["series"][0]["y"] == [None, 0.1, 0.2]


def test_escaped():
    assert escaped("a<b>\u202e") == r"a&lt;b&gt;\u202e"
