"""The update benchmark: what every side computes, TRL's grid, and what must not grow."""

import argparse

import numpy as np
import pytest
import update
from peers import case, growth


@pytest.mark.parametrize("name", case.WORKLOADS)
def test_a_workload_is_what_its_line_says(name):
    workload, made = case.WORKLOADS[name], case.make_case(case.WORKLOADS[name])
    count, longest = len(made.responses), max(map(len, made.responses))
    assert (
        f"{count} responses of up to {workload.max_response_tokens:,} tokens"
        in (update.WORKLOADS[name])
    )
    assert longest <= workload.max_response_tokens <= workload.row_len - case.PROMPT_TOKENS
    assert longest > workload.max_response_tokens / 2
    assert max(int(r.max()) for r in made.responses) < workload.vocab
    # Advantages are centred in each prompt's group.
    by_prompt = made.advantages.reshape(workload.prompts, case.RESPONSES)
    np.testing.assert_allclose(by_prompt.mean(1), 0, atol=1e-5)
    padded = case.padded(made)
    assert padded["completion_mask"].sum() == sum(map(len, made.responses))


def test_trls_grid_is_batches_and_allocators_by_dtype():
    for dtype in update.dtypes.DTYPES:
        grid = update.trl_grid(dtype, 64)
        assert [s.settings for s in grid] == [
            {"batch": batch, "dtype": dtype} | more
            for batch in (64, 16, 8)
            for more in ({}, {"preload": ("libtcmalloc",)})
        ]
        assert len({side.name for side in grid}) == 6
    assert [s.settings["batch"] for s in update.trl_grid("float32", 16)] == [16, 16, 8, 8]


@pytest.mark.parametrize("preload", [(), ("libtcmalloc",)])
def test_a_side_runs_with_what_it_preloads(preload, tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    library = tmp_path / "lib" / "libtcmalloc_minimal.so.4"
    library.touch()
    seen = []
    monkeypatch.setattr(update, "run", lambda command, **variables: seen.append(variables) or {})
    side = update.Side("trl", "trl", "float32", {"batch": 8, "preload": preload})
    args = argparse.Namespace(trl_python=str(tmp_path / "bin" / "python"), threads=2)
    update._run(args, side, "U1", tmp_path, 1)
    assert seen == [{"LD_PRELOAD": str(library)} if preload else {}]


def test_a_library_that_is_missing_is_named_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(update.environments, "LIBRARY_FOLDERS", ())
    monkeypatch.setattr("sys.argv", ["update.py", f"--trl_python={tmp_path / 'bin' / 'python'}"])
    with pytest.raises(SystemExit):
        update.main()
    assert "no libtcmalloc*.so in" in (said := capsys.readouterr().err)
    assert "apt-get install libtcmalloc-minimal4" in said


def test_our_grid_is_rows_at_once_by_dtype():
    for dtype in update.dtypes.DTYPES:
        grid = update.our_grid(dtype)
        assert [side.settings["rows"] for side in grid] == [4, 2, 1]
        assert len(set(grid)) == len({side.label for side in grid}) == 3
    assert update.our_grid("float32")[0].name == update.OURS  # by which a record finds ours


def timed(*seconds: float, loss: float = -0.04, **more) -> dict:
    common = {"real_tokens": 100, "peak_bytes": 1, "allocator": "libc", "parameters": 1}
    return {
        "seconds": list(seconds),
        "loss": loss,
        "padding_share": 0.1,
        "packed_rows": 24,
        "shared_prompt_tokens": 100,
        "start_s": 1,
        **common,
    } | more


def test_the_fastest_side_of_each_dtype_takes_part():
    whole, *_, eight, _ = update.trl_grid("float32", 64)
    half = update.trl_grid("bfloat16", 64)[0]
    tried = {whole: [timed(3.0)], eight: [timed(2.0)], half: [timed(1.0)]}
    assert update.fastest(tried) == [half, eight]


def test_rows_and_losses_are_set_beside_ours():
    ours = update.Side("polaris_jax", "polaris_jax", "float32")
    trl, half = (update.trl_grid(dtype, 64)[0] for dtype in update.dtypes.DTYPES)
    runs = {
        ours: [timed(1.0, 2.0, 3.0), timed(4.0)],
        trl: [timed(4.0), timed(8.0)],
        half: [timed(1.0, loss=-0.05), timed(4.0)],
    }
    mine, other, _ = update._rows("U1", runs)
    assert (mine.ratio, mine.tokens_per_s) == (None, 40.0)
    assert (other.ratio, other.seconds, other.settings) == (2.0, 6.0, {"batch": 64})
    assert update._other_losses("U1", runs) == []  # bfloat16 rounds
    runs[trl][0]["loss"] = -0.041
    (line,) = update._other_losses("U1", runs)
    assert "trl, float32, batches of 64: loss of step 1 -0.041, ours -0.04" in line
    assert "| 2.00 |" in "\n".join(update._comparison("U1", runs, {}))


TOKENS = (100, 200, 400, 800)


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [((2, 3, 5, 9), True), ((2, 3, 5, 9.5), True), ((1, 4, 16, 64), False)],
    ids=["a line", "near a line", "quadratic"],
)
def test_update_time_is_a_line_in_tokens(seconds, kept):
    assert growth.linear(TOKENS, seconds).startswith("kept" if kept else "BROKEN")


def test_the_distance_to_the_line_is_a_share_of_it():
    assert growth.off_line(TOKENS, (2, 3, 5, 9)) == pytest.approx(0, abs=1e-9)
    assert growth.linear(TOKENS, (2, 3, 5, 9)).startswith(
        "kept: update time lies within 0.0% of a line in tokens over 4 sizes, 100 to 800 tokens"
    )


@pytest.mark.parametrize(("last", "kept"), [(1.0, True), (1.05, True), (1.2, False), (0.5, True)])
def test_a_step_stays_as_long_as_it_is(last, kept):
    seconds = [1.0] * 75 + [last] * 25
    assert growth.flat(seconds).startswith("kept" if kept else "BROKEN")


def test_compiles_after_the_second_step_are_told():
    assert growth.compiled_once([3, 1, 0, 0]) == (
        "kept: 0 compiles after step 2 of 4 (before it 4)"
    )
    assert growth.compiled_once([3, 0, 0, 1]).startswith("BROKEN: 1 compiles")
