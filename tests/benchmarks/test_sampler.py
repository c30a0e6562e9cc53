"""The rollout benchmark: what it asks of every side, how it takes failures, and a run in small."""

import dataclasses
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys

import pytest
import sampler
from peers.dtypes import DTYPES
from peers.sampling import environments, tables
from peers.sampling.driver import OURS, Process, Side
from peers.sampling.environments import PeerFailed, last_line
from peers.sampling.sides import sides_of, vllm_grid, without_logprobs
from peers.sampling.tables import Result
from peers.sampling.workloads import WORKLOADS, lengths, requests, shrunk

ROOT = pathlib.Path(__file__).resolve().parents[2]
VOCAB = 8192


@pytest.mark.parametrize("name", WORKLOADS)
def test_lengths_are_long_tailed_and_clipped(name):
    workload = WORKLOADS[name]
    dealt, (least, most) = lengths(workload), workload.response_tokens
    assert len(dealt) == workload.num_requests
    assert least <= min(dealt)
    assert max(dealt) <= most
    # The median of n lognormal draws has a standard error of 1.25 sigma / sqrt(n) in logarithms.
    error = 1.25 * workload.sigma / math.sqrt(len(dealt))
    assert abs(math.log(statistics.median(dealt) / workload.median)) < 4 * error
    assert max(dealt) > 3 * workload.median


@pytest.mark.parametrize("name", WORKLOADS)
def test_rounds_share_lengths_and_nothing_else(name):
    workload = WORKLOADS[name]
    first, second = (requests(workload, number, VOCAB) for number in (1, 2))
    assert first == requests(workload, 1, VOCAB)
    assert sorted(r.tokens for r in first) == sorted(r.tokens for r in second)
    assert [r.tokens for r in first] != [r.tokens for r in second]
    assert not {tuple(r.prompt) for r in first} & {tuple(r.prompt) for r in second}
    assert len({tuple(r.prompt) for r in first}) == workload.prompts
    assert len({r.seed for r in first}) == len(first)
    least, most = workload.prompt_tokens
    for request in first:
        assert least <= len(request.prompt) - workload.shared_prefix <= most
        assert min(request.prompt) > 0
        assert max(request.prompt) < VOCAB
        assert len(request.prompt) + request.tokens <= workload.max_len
    prefixes = {tuple(r.prompt[: workload.shared_prefix]) for r in first}
    assert len(prefixes) == 1


def test_the_small_pool_holds_a_quarter_of_the_requests():
    workload = WORKLOADS["S4"]
    example = requests(workload, 0, VOCAB)
    whole, quarter = sides_of(workload, example, set())
    assert whole.settings == {}
    tokens = sum(len(r.prompt) + r.tokens for r in example)
    held = (quarter.settings["num_pages"] - 1) * 16
    assert 0.25 <= held / tokens < 0.3  # half a page is lost in each request


def test_the_prefix_workload_is_left_out_without_a_prefix_cache():
    workload = WORKLOADS["S3"]
    with pytest.raises(LookupError, match="prefix_cache"):
        sides_of(workload, [], {"slots"})
    on, off = sides_of(workload, [], {"slots", "prefix_cache"})
    assert (on.settings["prefix_cache"], off.settings["prefix_cache"]) == (True, False)


@pytest.mark.parametrize("name", ["S1", "S5"])
def test_our_side_comes_first_and_every_side_names_its_dtype(name):
    sides = sides_of(WORKLOADS[name], [], {"prefix_cache"})
    assert sides[0] == Side(OURS, OURS)
    assert [s.settings["dtype"] for s in sides if "bfloat16" in s.name] == ["bfloat16"]
    assert len({side.name for side in sides}) == len(sides)
    without = sides_of(WORKLOADS[name], [], {"prefix_cache"}, bfloat16=False)
    assert without == [side for side in sides if side.settings.get("dtype") != "bfloat16"]


def test_vllms_grid_is_every_combination_with_logprobs():
    for dtype in DTYPES:
        grid = vllm_grid(dtype)
        assert len(grid) == len({side.name for side in grid}) == 2 * 2 * 2
        assert {side.settings["dtype"] for side in grid} == {dtype}
        assert {
            (s.settings["block_size"], s.preload, s.settings["prefix_cache"]) for s in grid
        } == {
            (block, preload, cache)
            for block in (32, 128)
            for preload in ((), ("libtcmalloc", "libiomp5"))
            for cache in (True, False)
        }
        assert all(side.settings["logprobs"] for side in grid)


def test_a_side_without_logprobs_differs_in_nothing_else():
    best = vllm_grid("bfloat16")[-1]
    other = without_logprobs(best)
    assert other.settings == {**best.settings, "logprobs": False}
    assert other.preload == best.preload
    assert other.name == f"{best.name}, no log-probs"


def test_the_best_of_each_dtype_takes_part_with_and_without_logprobs():
    tried = [Result(side) for dtype in DTYPES for side in vllm_grid(dtype)]
    for seconds, result in enumerate(tried, start=1):
        result.rounds.append(answer(float(seconds)))
    tried[0].rounds.clear()  # the fastest failed
    chosen = sampler._best(tried)
    best = [tried[1].side, tried[len(tried) // 2].side]
    assert chosen == [side for b in best for side in (b, without_logprobs(b))]


def test_libraries_to_preload_are_found_in_the_environment_first(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "LIBRARY_FOLDERS", (str(tmp_path / "usr"),))
    python = tmp_path / "home" / "bin" / "python"
    for place in ("home/lib/libiomp5.so", "usr/x/libiomp5.so", "usr/x/libtcmalloc_minimal.so.4"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    found = environments.preloading(("libtcmalloc", "libiomp5"), python)
    wanted = (tmp_path / "usr/x/libtcmalloc_minimal.so.4", tmp_path / "home/lib/libiomp5.so")
    assert found == {"LD_PRELOAD": ":".join(map(str, wanted))}
    assert environments.preloading((), python) == {}
    with pytest.raises(PeerFailed, match=r"no libjemalloc\*\.so in"):
        environments.preloading(("libjemalloc",), python)


@dataclasses.dataclass(frozen=True)
class ScriptSide(Side):
    """A side whose script is a file of the test."""

    path: pathlib.Path = pathlib.Path()

    @property
    def script(self) -> pathlib.Path:
        return self.path


def script_side(tmp_path: pathlib.Path, generate: str) -> ScriptSide:
    path = tmp_path / "made_up_side.py"
    path.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks/peers/sampling')!r})\n"
        "import side\n"
        "def load(job):\n"
        "    print('chatter')\n"
        f"    return lambda requests: {generate}\n"
        "side.serve(load)\n"
    )
    return ScriptSide("made up", "made_up", path=path)


ONES = "[[1] * r['tokens'] for r in requests], [[-1.0] * r['tokens'] for r in requests]"
JOB = {"threads": 1}


def test_a_side_answers_with_its_figures(tmp_path):
    side = script_side(tmp_path, f"side.Sampled({ONES}, {{'row_waste': 0.25}})")
    process = Process(side, sys.executable, JOB, timeout_s=60)
    try:
        asked = [dataclasses.asdict(r) for r in requests(shrunk(WORKLOADS["S1"]), 0, VOCAB)]
        answer = process.ask(asked)
        assert answer["useful_tokens"] == sum(r["tokens"] for r in asked)
        assert answer["mean_logprob"] == -1.0
        assert answer["row_waste"] == 0.25
        assert answer["examples"][0]["prompt"] == asked[0]["prompt"]
        # It is stopped while it waits; without that this waits until the test's time is over.
        seen = os.waitid(os.P_PID, process._child.pid, os.WSTOPPED | os.WNOWAIT)
        assert seen is not None
        assert seen.si_status == signal.SIGSTOP
    finally:
        process.end()


def test_a_side_without_logprobs_sends_no_examples(tmp_path):
    ones = ONES.partition("], [[-1")[0] + "]"
    side = script_side(tmp_path, f"side.Sampled({ones}, None, {{}})")
    process = Process(side, sys.executable, JOB, timeout_s=60)
    try:
        said = process.ask([{"prompt": [1], "tokens": 2, "seed": 0}])
        assert said["useful_tokens"] == 2
        assert not {"examples", "mean_logprob"} & set(said)
        assert set(process.libraries) == {"allocator", "openmp"}
    finally:
        process.end()


@pytest.mark.parametrize(
    ("generate", "words"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (f"side.Sampled({ONES.replace('[1]', '[1, 1]')}, {{}})", "were asked for"),
    ],
    ids=["raises", "other-lengths"],
)
def test_a_side_that_fails_says_its_last_line(tmp_path, generate, words):
    process = Process(script_side(tmp_path, generate), sys.executable, JOB, timeout_s=60)
    try:
        with pytest.raises(PeerFailed, match=words):
            process.ask([{"prompt": [1], "tokens": 2, "seed": 0}])
    finally:
        process.end()


def test_a_side_that_hangs_is_given_up(tmp_path):
    side = script_side(tmp_path, "__import__('time').sleep(60)")
    process = Process(side, sys.executable, JOB, timeout_s=60)
    process._timeout_s = 0.2
    try:
        with pytest.raises(PeerFailed, match="no answer within"):
            process.ask([])
    finally:
        process.end()


@pytest.mark.slow
def test_a_system_that_cannot_be_installed_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "PACKAGES", {"tunix": (str(tmp_path / "nothing"),)})
    with pytest.raises(PeerFailed, match=r"not installed: .*nothing"):
        environments.interpreter("tunix", tmp_path)
    (tmp_path / "tunix" / "ready").touch()  # whole from here on: nothing is installed again
    python = environments.interpreter("tunix", tmp_path)
    assert pathlib.Path(python).is_relative_to(tmp_path)


def test_last_line_skips_blank_ones():
    assert last_line("first\n  second  \n\n") == "second"
    assert last_line("\n") == "it said nothing"


def answer(seconds: float, **more: object) -> dict:
    common = {"useful_tokens": 100, "cpu_s": 2.0, "peak_bytes": 2**30, "digests": ["a"]}
    return {"seconds": seconds, **common, **more}


def test_tables_of_sides_that_ran_and_failed():
    ours = Result(Side(OURS, OURS), rounds=[answer(s, row_waste=0.125) for s in (1.0, 2.0, 4.0)])
    slow = Result(Side("slow", "vllm"), rounds=[answer(s) for s in (2.0, 2.0, 4.0)])
    gone = Result(Side("gone", "tunix"), failure="ended with 1: OSError: no such thing")
    text = "\n".join(tables.table([ours, slow, gone]))
    row = "| polaris_jax |  | float32 | unknown | 50 | 25 to 100 | 50 | 1.00 | 12.5% |"
    assert row in text
    assert "| slow |  | float32 | unknown | 50 | 25 to 50 | 50 | 1.00 | unknown |" in text
    assert "gone: failed after 0 rounds: ended with 1: OSError: no such thing" in text
    compared = "\n".join(tables.ratios([ours, slow, gone]))
    assert "polaris_jax / slow: 1.00 times the tokens/s (2.00, 1.00, 1.00)." in compared
    assert "gone" not in compared
    assert tables.ratios([slow, ours]) == []  # nothing of ours to compare


def test_a_peer_is_compared_with_ours_of_its_dtype():
    ours, half, xla, theirs, slow = (
        Result(Side(name, system, {"dtype": dtype}), rounds=[answer(seconds)])
        for name, system, dtype, seconds in (
            (OURS, OURS, "float32", 4.0),
            ("half", OURS, "bfloat16", 2.0),
            ("xla", OURS, "float32", 8.0),
            ("theirs", "vllm", "bfloat16", 3.0),
            ("slow", "vllm", "float32", 8.0),
        )
    )
    found = [line.split(" times")[0] for line in tables.ratios([ours, half, xla, theirs, slow])]
    assert found[::2] == [
        "polaris_jax / half: 0.50",
        "polaris_jax / xla: 2.00",
        "half / theirs: 1.50",
        "polaris_jax / slow: 2.00",
    ]
    made = tables.rows("S1: x", [ours, half, xla, theirs, slow])
    assert [row.ratio for row in made] == [None, 0.5, 2.0, 1.5, 2.0]
    half.rounds = []  # it failed
    assert [row.ratio for row in tables.rows("S1: x", [ours, half, theirs])] == [None, 0.75]


def test_rows_name_dtype_allocator_and_settings():
    best = vllm_grid("bfloat16")[2]
    ours = Result(Side(OURS, OURS), rounds=[answer(s) for s in (1.0, 2.0, 4.0)])
    theirs = Result(best, rounds=[answer(s) for s in (2.0, 2.0, 4.0)])
    theirs.libraries = {"allocator": "libtcmalloc_minimal", "openmp": "libiomp5"}
    gone = Result(Side("gone", "tunix"), failure="no such thing")
    first, second = tables.rows("S1: x", [ours, theirs, gone])
    assert (first.side, first.ratio, first.dtype) == (OURS, None, "float32")
    assert (second.ratio, second.dtype, second.seconds) == (1.0, "bfloat16", 2.0)
    assert second.allocator == "libtcmalloc_minimal"
    assert second.settings["preload"] == "libtcmalloc+libiomp5"
    assert {"block_size", "prefix_cache", "logprobs"} <= set(second.settings)
    assert [r.ratio for r in tables.rows("S1: x", [theirs, ours])] == [None, None]
    (candidate,) = tables.rows("S1: x", [theirs], candidate=True)
    assert candidate.candidate and candidate.ratio is None


def test_equal_responses_are_counted_over_the_rounds():
    one, other = (
        Result(Side(name, OURS), rounds=[answer(1.0, digests=["a", d]), answer(1.0)])
        for name, d in (("one", "b"), ("other", "c"))
    )
    assert tables.same_tokens([one, other])[0] == "Same tokens: 2 of 3 responses."
    assert tables.same_tokens([one, one])[0] == "Same tokens: 3 of 3 responses."
    assert tables.same_tokens([one]) == []


@pytest.mark.slow
def test_a_run_in_small(tmp_path):
    out = tmp_path / "report.md"
    command = [sys.executable, "benchmarks/sampler.py", "--tiny", "--rounds=1", f"--out={out}"]
    ran = subprocess.run(
        [*command, "--workloads=S1", f"--sides={OURS},tunix", f"--tunix_python={sys.executable}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    text = out.read_text()
    assert text == ran.stdout
    assert "TINY: figures mean nothing" in text
    row = next(line for line in text.splitlines() if line.startswith(f"| {OURS} |"))
    waste, error = row.split(" | ")[8], row.split(" | ")[-1].removesuffix(" |")
    assert 0 < float(waste.removesuffix("%")) < 100
    assert float(error.split()[0]) < 1e-4  # the largest; the mean is behind it
    assert "tunix, 4 sorted batches: failed after 0 rounds" in text
    assert "No module named 'tunix'" in text
