"""The runs that drills disturb: command lines of seconds, what they leave, when to kill them."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

from tests.drills.drill import Command, Place, changes, digests, last_words, watch
from tests.support import fake_bucket, micro_run

QUESTIONS = 300  # of the sets that `calibrate`, `evaluate` and `prepare` read
GRADED_ROWS = 6000
HEARTBEAT_S = 10
PEER_END_WITHIN_S = HEARTBEAT_S + 90
IN_BUCKET = ("-m", "tests.support.in_bucket")
SHORT_STAGES = ("--config.stages[0].steps=3", "--config.stages[1].steps=3")


@dataclasses.dataclass(frozen=True)
class Run:
    """A kind of run.

    Attributes:
        commands: what runs, in order; names of `words`.
        equal: patterns of the files that do not depend on how often the run was killed.
        moments: patterns of the files whose changes are the moments for a kill.
        flags: further flags of every command.
        ranks: processes of the run.
        bucket: whether the workdir lies in an object store.
        problems: the set that it reads, a file of the stock.
        kills: number of kills for each seed.
    """

    commands: tuple[str, ...]
    equal: tuple[str, ...]
    moments: tuple[str, ...]
    flags: tuple[str, ...] = ()
    ranks: int = 1
    bucket: bool = False
    problems: str = "problems"
    kills: int = 8


TRAINED = ("metrics.jsonl", "stages.json", "rollouts/*", "checkpoints")
TRAINING = (
    *("metrics.jsonl", "metrics.jsonl", "rollouts/*", "timing.jsonl", "checkpoints/*.unfinished"),
    *("checkpoints/*/MANIFEST.json*", "checkpoints/*", "checkpoints/*/arrays*", "stages.json*"),
    *("run.json*", "checkpoints/*/host.json", "checkpoints/tokenizer/*", "tensorboard/*"),
)
CALIBRATED = ("calibrate.json", "difficulty.parquet", "curated.parquet")
CALIBRATING = (*("calibrate_progress.jsonl",) * 3, "*.parquet*", "calibrate*", "difficulty.png")
CARRY = (
    "--config.rollout.partial_rollouts=carry",
    "--config.rollout.partial_share=0.6",
    "--config.rollout.partial_max_lag=1",
    "--config.rollout.decode_steps=2",
    "--config.objective.old_logprobs=sampler",
)
WARM = (
    *("--config.model.path=", "--config.warmstart.steps=200", "--config.warmstart.examples=128"),
    *("--config.warmstart.hidden_size=32", "--config.warmstart.intermediate_size=64"),
    *("--config.warmstart.num_layers=2", "--config.warmstart.max_position_tokens=64"),
    *("--config.data.max_prompt_tokens=40", *SHORT_STAGES),
)


def _ranks(count: int) -> tuple[str, ...]:
    return (
        f"--config.mesh.fsdp={count}",
        f"--config.batch.rows={count}",
        f"--config.distributed.heartbeat_timeout_s={HEARTBEAT_S}",
        *SHORT_STAGES,
    )


RUNS = {
    "prepare": Run(
        ("prepare",), ("problems.parquet", "prepare.json"), ("*", "*.parquet*", "prepare*"),
        problems="questions", kills=4,
    ),
    "calibrate": Run(
        ("calibrate",), CALIBRATED, CALIBRATING, problems="questions", kills=10
    ),
    "probe": Run(("probe",), ("probe.json",), (*("probe_progress.jsonl",) * 3, "probe.*"), kills=7),
    "train": Run(("train",), TRAINED, TRAINING, kills=18),
    "warm": Run(
        ("train",),
        (*TRAINED, "base_model/model.safetensors", "base_model/warmstart.json"),
        ("base_model*", "base_model/*", "base_model/*", "base_model/*", *TRAINING),
        WARM,
        kills=6,
    ),
    "carry": Run(("train",), TRAINED, TRAINING, CARRY, kills=10),
    "evaluate": Run(
        ("evaluate",), ("eval.json", "responses.jsonl"), (*("responses.jsonl",) * 3, "eval.*"),
        kills=8,
    ),
    "report": Run(("report",), ("figures/*",), ("figures*", "figures/*", "report.html*"), kills=5),
    "convert": Run(("convert",), ("out/*",), ("out*", "out/*"), kills=5),
    "grade": Run(("grade",), ("graded.jsonl",), ("graded.jsonl*",), kills=8),
    "generate": Run(("generate",), ("generate.said",), (), kills=3),
    "recipe": Run(
        ("prepare", "calibrate", "probe", "train"),
        ("problems.parquet", *CALIBRATED, "probe.json", *TRAINED),
        (*CALIBRATING, "probe*", *TRAINING),
        problems="questions",
        kills=8,
    ),
    "bucket": Run(("train",), TRAINED, TRAINING, bucket=True, kills=8),
    "train2": Run(("train",), TRAINED, TRAINING, _ranks(2), ranks=2, kills=10),
    "carry2": Run(("train",), TRAINED, TRAINING, (*CARRY, *_ranks(2)), ranks=2, kills=4),
    "calibrate2": Run(
        ("calibrate",), CALIBRATED, CALIBRATING, _ranks(2), ranks=2, problems="questions", kills=4
    ),
    "train4": Run(("train",), TRAINED, TRAINING, _ranks(4), ranks=4, kills=6),
    # For pairs: the training that belongs to `calibrate`.
    "asked": Run(("train",), TRAINED, TRAINING, SHORT_STAGES, problems="questions", kills=0),
}  # fmt: skip


def make_stock(folder: Path) -> None:
    """The base model, problem sets, and responses to grade."""
    micro_run.make_base(folder)
    questions = [
        {"id": f"q{i}", "problem": f"Start with {i}.", "answer": str(1 + i % 4)}
        for i in range(QUESTIONS)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    pick = random.Random(0)
    forms = (r"\frac{{{0}}}{{2}}", r"{0}+x", r"\sqrt{{{0}}}", r"{0}", r"{0}\cdot 3", r"2^{{{0}}}")
    rows = []
    for i in range(GRADED_ROWS):
        answer, gold = (pick.choice(forms).format(pick.randrange(99)) for _ in range(2))
        rows.append({"n": i, "text": rf"</think> \boxed{{{answer}}}", "gold": gold})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def stock(place: Place) -> Path:
    """The folder of `make_stock`."""
    return place.made("inputs", make_stock)


def words(name: str, run: Run, place: Place, workdir: object) -> list[str]:
    """The command line of one command of a run."""
    inputs = stock(place)
    if name == "grade":
        return ["grade", f"--input={inputs / 'rows.jsonl'}", f"--out={workdir}/graded.jsonl"]
    if name == "generate":
        more = ("--prompt=Start with 3.", "--n=3", "--max_tokens=16", "--yarn_original=32")
        return ["generate", f"--model={inputs / 'base'}", *more]
    if name == "convert":
        source = whole("train", place) / "checkpoints"
        return ["convert", f"--from={source}", f"--to={workdir}/out"]
    fields = {
        "calibrate.n": 4,
        "calibrate.batch_prompts": 20,
        "probe.start": 0.4,
        "probe.stop": 1.3,
        "probe.step": 0.1,
        "evaluate.problems": inputs / "questions.jsonl",
        "evaluate.n": 2,
    }
    more = [f"--config.{field}={value}" for field, value in fields.items()]
    problems = inputs / f"{run.problems}.jsonl"
    line = micro_run.flags(inputs / "base", problems, *more, *run.flags)
    return [name, *line, f"--workdir={workdir}"]


def start(
    words: Sequence[str], logs: Path, *, ranks: int = 1, bucket: fake_bucket.Bucket | None = None
) -> list[Command]:
    """The processes of one command, without a launcher; output in new files of `logs`."""
    logs.mkdir(exist_ok=True)
    number = len(list(logs.iterdir()))
    if bucket is not None:
        door = fake_bucket.environment(bucket) | {"POLARIS_TEST_BUCKET": bucket.url}
        return [Command(words, logs / f"{number:03}", program=IN_BUCKET, **door)]
    if ranks == 1:
        return [Command(words, logs / f"{number:03}")]
    port = micro_run.free_port()
    return [
        Command(
            words,
            logs / f"{number:03}.{rank}",
            POLARIS_COORDINATOR=f"127.0.0.1:{port}",
            POLARIS_NUM_PROCESSES=str(ranks),
            POLARIS_PROCESS_ID=str(rank),
        )
        for rank in range(ranks)
    ]


def prepare_workdir(name: str, place: Place, workdir: Path) -> None:
    """What must lie in a workdir before a run of this name starts."""
    workdir.mkdir(parents=True, exist_ok=True)
    if name == "report":
        source = whole("train", place)
        for file in ("metrics.jsonl", "timing.jsonl", "stages.json", "run.json"):
            (workdir / file).write_bytes((source / file).read_bytes())
        (workdir / "rollouts").mkdir(exist_ok=True)
        for path in (source / "rollouts").iterdir():
            (workdir / "rollouts" / path.name).write_bytes(path.read_bytes())


def whole(name: str, place: Place) -> Path:
    """The workdir of an undisturbed run."""
    run = RUNS[name]
    if run.bucket:  # it must equal the run on a disk
        return whole("train", place)

    def make(folder: Path) -> None:
        prepare_workdir(name, place, folder / "run")
        for command in run.commands:
            line = words(command, run, place, folder / "run")
            finish(start(line, folder / "logs", ranks=run.ranks))
        note_said(name, folder)

    return place.made(f"whole_{name}", make) / "run"


def finish(commands: list[Command]) -> None:
    """Waits for a good end of all processes.

    Raises:
        AssertionError: one of them did not end well.
    """
    for command in commands:
        status = command.end()
        assert status == 0, f"status {status}: {last_words(command.said)}"
        assert "Traceback" not in command.said, last_words(command.said)


def note_said(name: str, folder: Path) -> None:
    """Puts the output of the last `generate` beside other results."""
    if name == "generate":
        said = sorted((folder / "logs").iterdir())[-1].read_text()
        said = "".join(line for line in said.splitlines(keepends=True) if " tokens; " not in line)
        # Completions are printed as they end; the order is no part of the result.
        texts = sorted(text.partition("\n")[2] for text in said.split("--- ")[1:])
        (folder / "run" / "generate.said").write_text("\n".join(texts))


def expected(name: str, place: Place) -> dict[str, str]:
    """Digests of the files of the undisturbed run that a disturbed one must end with."""
    folder = whole(name, place)

    def make(to: Path) -> None:
        (to / "digests.json").write_text(json.dumps(digests(folder, RUNS[name].equal)))

    return json.loads((place.made(f"expected_{name}", make) / "digests.json").read_text())


def watch_moment(commands: Sequence[Command], look, pick: random.Random, *, nth: int) -> bool:
    """Waits for a moment and a random while after it; False if a process ends before."""

    def alive() -> bool:
        return all(command.alive for command in commands)

    if not watch(look, nth, alive):
        return False
    time.sleep(pick.choice([0.0, pick.uniform(0, 0.02), pick.uniform(0, 0.5)]))
    return alive()


def looks(run: Run, workdir: Path, bucket: fake_bucket.Bucket | None, pattern: str):
    """The function whose changing result is a moment of a run."""
    if bucket is None:
        return lambda: changes(workdir, pattern)
    import fnmatch

    def stored() -> dict[str, int]:
        objects = dict(bucket.objects)
        found = {n.partition("/runs/one/")[2]: g for n, (_, g) in objects.items()}
        return {n: g for n, g in found.items() if n and fnmatch.fnmatchcase(n, pattern)}

    return stored
