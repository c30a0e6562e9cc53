"""What the tables of pods take for a shortfall; nothing is compiled."""

import pathlib
import runpy

import pytest

PODS = runpy.run_path(str(pathlib.Path(__file__).resolve().parents[2] / "launch" / "plan_pods.py"))
REFUSED = {"fits": False, "reasons": ["too large"]}


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"fits": True}, "fits, though it must be refused"),
        (REFUSED, "no setting that fits named"),
        (REFUSED | {"nearest": "none on v5e:2x2 or the next 3 larger pods"}, "no setting"),
    ],
)
def test_what_must_be_refused_is_refused_with_a_setting_that_fits(plan, words):
    for case in PODS["MUST_REFUSE"]:
        assert words in PODS["shortfall"](case, plan)
        found = REFUSED | {"nearest": "--config.rollout.page_size=64"}
        assert PODS["shortfall"](case, found) == ""


def test_what_must_fit_fits_with_its_rows():
    case = PODS["MUST_FIT"][0]
    fits = {"fits": True, "fit": {"full_rows": case.rows_at_least}}
    assert PODS["shortfall"](case, fits) == ""
    assert "does not fit: too large" in PODS["shortfall"](case, REFUSED)
    fits["fit"]["full_rows"] -= 1
    assert "full-length rows" in PODS["shortfall"](case, fits)
