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


def test_a_row_has_a_cell_for_each_heading():
    plan = {
        "topology": "v5p:2x2x4",
        "devices": 16,
        "setting": {"mesh": {"fsdp": 16, "context": 1, "tensor": 1}, "rows": 16}
        | {"sampler_tensor": 1},
        "fits": True,
        "chip": {"hbm_bytes": 95 * 2**30},
        "fit": {
            "full_rows": 160,
            "phases": [
                {"name": "update", "total": 40 * 2**30},
                {"name": "sampling", "total": 80 * 2**30, "parts": {"KV pool": 70 * 2**30}},
            ],
        },
        "programs": [{"name": "update: gradients", "collectives": []}],
        "estimate": {
            "rollout_s": 2009.4,
            "imbalance": 1.084,
            "room_for": 512,
            "sequences": 1024,
            "host_s": 21.6,
            "update_s": 361.0,
            "tokens_per_s_device": 540.0,
        },
    }
    heading = PODS["MARKDOWN_HEADER"].splitlines()[0]
    row = PODS["markdown_row"]("4b", plan)
    assert row.count("|") == heading.count("|")
    assert "| 2,009 | 1.08 | 512 of 1,024 | 22 | 361 | 540 |" in row
    refused = PODS["markdown_row"]("4b", plan | REFUSED | {"nearest": "--config.batch.rows=8"})
    assert refused.count("|") == heading.count("|")
