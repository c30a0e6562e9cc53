"""Which checkpoints and tags a command line of `evaluate` names."""

import pytest

from polaris_jax.config import ConfigError
from polaris_jax.measure.scored import Scored, scored_by


@pytest.mark.parametrize(
    ("checkpoint", "tag", "found"),
    [
        ("", "", [("", "")]),
        ("latest", "after", [("latest", "after")]),
        ("base", "before", [("", "before")]),
        ("base,latest", "before,after", [("", "before"), ("latest", "after")]),
        (
            "base, latest,runs/4b/checkpoints/30",
            "",
            [("", "base"), ("latest", "latest"), ("runs/4b/checkpoints/30", "checkpoints_30")],
        ),
    ],
)
def test_checkpoints_and_tags(checkpoint, tag, found):
    assert scored_by(checkpoint, tag) == [Scored(*pair) for pair in found]


def test_a_path_with_a_comma_is_one_checkpoint(tmp_path):
    path = tmp_path / "a,b"
    path.mkdir()
    assert scored_by(str(path), "x") == [Scored(str(path), "x")]


def test_a_path_named_base_is_that_path(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    assert scored_by("base", "") == [Scored("base", "")]


@pytest.mark.parametrize(
    ("checkpoint", "tag", "words"),
    [
        ("base,latest", "one", r"--tag=one: 1 for 2 checkpoints; give one each"),
        ("latest", "one,two", r"--tag=one,two: 2 for 1 checkpoints"),
        ("base,latest", "x,x", r"--tag=x,x: two are equal"),
        ("a/last,b/a/last", "", r"--tag=a_last,a_last: two are equal"),
    ],
)
def test_tags_that_do_not_fit(checkpoint, tag, words):
    with pytest.raises(ConfigError, match=words):
        scored_by(checkpoint, tag)


def test_the_names_that_people_read():
    assert [s.name for s in scored_by("base,latest", "before,after")] == ["before", "after"]
    assert scored_by("", "")[0].name == "base"
