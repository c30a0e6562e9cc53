r"""Responses against gold answers, row by row, with the reason of each verdict.

Reads JSON lines and writes one line a row: reward, extracted answer, deciding layer, normal forms,
reason. Rerun it to continue where it stopped. With `--problems` the golds come from a problem file
by problem_id, as for the responses.jsonl of `polaris evaluate`. `--explain ANSWER GOLD` prints the
path that one pair takes. `--audit=sympy` asks sympy, too, adds its verdict to each row, and prints
the pairs on which the two differ.

Example:
  polaris grade --input responses.jsonl --gold_field gold --mode eval --workers 2 --out graded.jsonl
  polaris grade --input=runs/4b/responses.jsonl --problems=aime24.jsonl --out=graded.jsonl
  polaris grade --explain '\frac{2}{4}' '0.5'
  polaris grade --input responses.jsonl --audit=sympy --out audited.jsonl
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from polaris_jax.commands.flags import flags, parse
from polaris_jax.config import ConfigError
from polaris_jax.data.problems import read_problems
from polaris_jax.data.sources import DataError
from polaris_jax.reward import Grader
from polaris_jax.reward.audit import SecondOpinion, SympyAudit
from polaris_jax.reward.extract import Mode
from polaris_jax.reward.math.equivalence import explain_path, gold_texts
from polaris_jax.run.owner import owned
from polaris_jax.run.progress_file import ProgressFile, identity_path
from polaris_jax.system.files import as_place, file_to_write
from polaris_jax.system.progress import Progress
from polaris_jax.system.signals import begin_work
from polaris_jax.system.text import printable

if TYPE_CHECKING:
    from etils import epath

BATCH_ROWS = 1000
HASH_BYTES = 1 << 20
TEXT_FIELDS = ("text", "response", "completion", "output", "answer")
GOLD_FIELDS = ("gold", "answer", "final_answer", "ground_truth", "expected_answer")
MODES = ["train", "eval", "free"]
PRESETS = ["strict", "default", "lenient"]
AUDITS = ["none", "sympy"]
MOST_SHOWN = 50  # pairs on which sympy differs; the output file has all of them


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("input", "", "JSON lines of responses", flag_values=values)
    flags.DEFINE_string("out", "", "where graded rows go", flag_values=values)
    flags.DEFINE_string(
        "text_field", "", "field of the response; empty: found by its name", flag_values=values
    )
    flags.DEFINE_string(
        "gold_field", "", "field of the gold answer; empty: found by its name", flag_values=values
    )
    flags.DEFINE_string("problems", "", "problem file with the golds", flag_values=values)
    flags.DEFINE_enum("mode", "eval", MODES, "how answers are extracted", flag_values=values)
    flags.DEFINE_enum("preset", "default", PRESETS, "what counts as equal", flag_values=values)
    flags.DEFINE_enum("audit", "none", AUDITS, "who is asked, too", flag_values=values)
    flags.DEFINE_integer("workers", 2, "grader processes", lower_bound=1, flag_values=values)
    flags.DEFINE_float(
        "timeout_s", 5.0, "deadline of one answer, in seconds", lower_bound=0.01, flag_values=values
    )
    flags.DEFINE_integer(
        "memory_mib", 1024, "memory of one worker; 0: no limit", lower_bound=0, flag_values=values
    )
    flags.DEFINE_bool(
        "explain", False, "ANSWER GOLD: prints how one pair is decided", flag_values=values
    )


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    pair, argv = _explained_pair(argv)
    own = parse("grade", argv, doc=__doc__ or "", define=_define, takes_config=False).flags
    if pair is not None:
        print(explain_path(*pair, preset=own["preset"]))
        return 0
    for name in ("input", "out"):
        if not own[name]:
            raise ConfigError(f"--{name}: needed; name a JSON-lines file")
    source = as_place(own["input"])
    for name in ("input", "problems") if own["problems"] else ("input",):
        path = as_place(own[name])
        if path.is_dir():
            raise ConfigError(f"--{name}={own[name]}: it is a directory; name one file in it")
        if not path.is_file():
            raise ConfigError(f"--{name}={own[name]}: there is no such file")
        with path.open("rb") as file:
            is_empty = not file.read(1)
        if is_empty:
            raise ConfigError(f"--{name}={own[name]}: it is empty; write one JSON object a line")
    out = file_to_write(own["out"], flag="--out")
    if out.exists() and out.resolve() == source.resolve():
        raise ConfigError(f"--out={own['out']}: it is the input; name another file")
    options = GradeOptions(
        text_field=own["text_field"],
        gold_field=own["gold_field"],
        problems=own["problems"],
        mode=own["mode"],
        preset=own["preset"],
        audit=own["audit"],
        workers=own["workers"],
        timeout_s=own["timeout_s"],
        memory_limit_bytes=own["memory_mib"] << 20,
    )
    begin_work()
    print(grade_file(source, out, options, progress=Progress()).table())
    return 0


def _explained_pair(argv: list[str]) -> tuple[tuple[str, str] | None, list[str]]:
    """The two words behind --explain, which may begin with a minus sign, and the other words."""
    if "--explain" not in argv:
        return None, argv
    place = argv.index("--explain")
    pair = argv[place + 1 : place + 3]
    if len(pair) != 2:
        raise ConfigError("--explain: needs an answer and a gold answer behind it")
    return (pair[0], pair[1]), [*argv[:place], *argv[place + 3 :]]


@dataclasses.dataclass(frozen=True)
class GradeOptions:
    """How rows are read and graded.

    Attributes:
        text_field: name of the response field; "": the first of TEXT_FIELDS in the first row.
        gold_field: name of the gold answer field; "": the first of GOLD_FIELDS.
        problems: problem file with the golds, looked up by `problem_id`; "": the rows hold golds.
        mode: "train", "eval" or "free".
        preset: "strict", "default" or "lenient".
        audit: "sympy" asks sympy about each pair; "none" does not.
        workers, timeout_s, memory_limit_bytes: the arguments of `Grader`.
    """

    text_field: str = ""
    gold_field: str = ""
    problems: str = ""
    mode: Mode = "eval"
    preset: str = "default"
    audit: str = "none"
    workers: int = 2
    timeout_s: float = 5.0
    memory_limit_bytes: int = 1 << 30


@dataclasses.dataclass
class GradeSummary:
    """Counts over the complete output file, including rows of earlier calls."""

    is_audited: bool = False
    rows: int = 0
    resumed: int = 0
    correct: int = 0
    layers: Counter[str] = dataclasses.field(default_factory=Counter)
    audited: Counter[str] = dataclasses.field(default_factory=Counter)
    differing: list[str] = dataclasses.field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        """Counts a row of the output."""
        self.rows += 1
        self.correct += row["reward"] == 1.0
        self.layers[f"{row['layer']} {'equal' if row['reward'] else 'not equal'}"] += 1
        if self.is_audited:
            self._add_audited(row)

    def _add_audited(self, row: dict[str, Any]) -> None:
        if row["sympy"] is None:
            self.audited["no verdict"] += 1
        elif row["sympy"] == (row["reward"] == 1.0):
            self.audited["agree"] += 1
        else:
            self.audited["differ"] += 1
            if len(self.differing) < MOST_SHOWN:
                ours, theirs = ("equal", "different") if row["reward"] else ("different", "equal")
                self.differing.append(
                    f"  row {row['row']}: {row['answer']!r} for {row['gold']!r}: we say {ours} "
                    f"({row['layer']}), sympy {theirs}"
                )

    def table(self) -> str:
        """Rows by the layer that decided, most frequent first."""
        share = f" ({self.correct / self.rows:.1%})" if self.rows else ""
        lines = [f"{self.rows} rows, {self.correct} correct{share}"]
        for name, count in sorted(self.layers.items(), key=lambda item: (-item[1], item[0])):
            layer, _, verdict = name.partition(" ")
            lines.append(f"  {layer:<12}{verdict:<12}{count:>8}")
        if self.is_audited:
            counts = (self.audited[name] for name in ("agree", "differ", "no verdict"))
            lines.append("sympy: agrees on {}, differs on {}, no verdict on {}".format(*counts))
            lines += map(printable, self.differing)
            if (more := self.audited["differ"] - len(self.differing)) > 0:
                lines.append(f"  and {more} more: see the column sympy of the output")
        return "\n".join(lines)


def grade_file(
    source: epath.Path, out: epath.Path, options: GradeOptions, *, progress: Progress
) -> GradeSummary:
    """Grades each row of a JSON-lines file; a rerun continues after the last finished row.

    Each input row has one line in `out`: its own fields, and row, reward, answer, gold, layer,
    reason, answer_form, gold_form. An own field of such a name becomes `input_NAME`.
    With an audit there are sympy (true, false, or null without a verdict) and sympy_reason, too.
    `X.identity.json` beside `out` records input and options.

    Raises:
        ConfigError: a file, line or field is missing or not readable, or another `polaris grade`
            writes to `out`.
    """
    with owned(
        out.parent,
        out.name,
        busy=f"--out={out}: `polaris grade` already writes to it",
        remedy="name another --out",
        writes=(out.name, identity_path(out).name),
    ):
        return _grade_file(source, out, options, progress)


def _grade_file(
    source: epath.Path, out: epath.Path, options: GradeOptions, progress: Progress
) -> GradeSummary:
    done = ProgressFile(out, _identity(source, options), key=("row",), valid=_is_graded)
    summary = GradeSummary(is_audited=options.audit != "none")
    finished = {row["row"] for row in done.rows}
    for row in done.rows:
        summary.add(row)
    done.rows.clear()  # an output may be long
    if finished:
        summary.resumed = summary.rows
        progress.line(f"resumed after {summary.resumed} rows")
    golds = _golds(options.problems) if options.problems else None
    rows = (row for row in _rows(source, options, golds) if row.number not in finished)
    limits = options.workers, options.timeout_s, options.memory_limit_bytes
    with contextlib.ExitStack() as stack:
        grader = stack.enter_context(Grader(*limits, preset=options.preset))
        audit = None
        if options.audit == "sympy":
            audit = stack.enter_context(contextlib.closing(SympyAudit(*limits)))
        while batch := list(itertools.islice(rows, BATCH_ROWS)):
            texts, answers = [row.text for row in batch], [row.gold for row in batch]
            grades, new = grader.grade(texts, answers, options.mode), []
            opinions = audit.judge([one.answer for one in grades], answers) if audit else grades
            for row, grade, opinion in zip(batch, grades, opinions, strict=True):
                verdict = {"row": row.number, "gold": row.gold} | grade._asdict()
                del verdict["parts"]  # the math grader has none
                if isinstance(opinion, SecondOpinion):
                    verdict |= {"sympy": opinion.equal, "sympy_reason": opinion.reason}
                new.append(_finite(_beside(row.fields, verdict)))
                summary.add(verdict)
            done.append(new)
            progress.line(f"graded {summary.rows} rows")
    return summary


def _beside(fields: dict[str, Any], verdict: dict[str, Any]) -> dict[str, Any]:
    """The input's fields with the verdict; one of a name of ours is called `input_NAME`."""
    gold = ("gold", verdict["gold"])
    own = {
        (f"input_{name}" if name in verdict else name): value
        for name, value in fields.items()
        if (name, value) != gold
    }
    return own | verdict


def _golds(problems: str) -> dict[str, Any]:
    """The gold of every id, by the ids that responses name."""
    try:  # as `evaluate` reads: repeats stay
        found, _ = read_problems(problems, unique=False, field="--problems")
    except DataError:  # as `train` reads: an id's second problem is renamed
        found, _ = read_problems(problems, field="--problems")
    return {problem.id: problem.answer for problem in found}


@dataclasses.dataclass(frozen=True)
class _Row:
    number: int
    text: str
    gold: Any
    fields: dict[str, Any]


def _identity(source: epath.Path, options: GradeOptions) -> dict[str, Any]:
    """The identity of the output: the input's bytes and the options of reading and comparing."""
    names = ("text_field", "gold_field", "mode", "preset", "timeout_s", "memory_limit_bytes")
    found = {name: getattr(options, name) for name in names}
    if options.audit != "none":
        found["audit"] = options.audit
    for name, path in (("input", source), ("problems", as_place(options.problems or os.devnull))):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(HASH_BYTES):
                digest.update(block)
        found[name] = digest.hexdigest()
    return found


def _is_graded(row: Mapping[str, Any]) -> bool:
    return row.get("reward") in (0.0, 1.0) and isinstance(row.get("layer"), str)


def _finite(value: Any) -> Any:
    """A JSON value with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list) else value


def _rows(
    source: epath.Path, options: GradeOptions, golds: dict[str, Any] | None
) -> Iterator[_Row]:
    text_field, gold_field = options.text_field, options.gold_field
    with (
        source.open("rb") as raw,  # a store gives text in no other encoding than UTF-8
        io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace") as file,
    ):
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = _parsed(source, number, line)
            if set(row) == {"identity"}:  # responses.jsonl of version 0.2 begins with it
                continue
            text_field = text_field or _first_of(TEXT_FIELDS, row, "--text_field", source, number)
            if golds is None:
                others = [name for name in GOLD_FIELDS if name != text_field]
                if not gold_field and "problem_id" in row and not set(others) & set(row):
                    raise ConfigError(
                        f"--problems: needed, {source}, line {number} has a problem_id and no "
                        "gold; name the problem file, as evaluate.problems did, like "
                        "--problems=aime24.jsonl"
                    )
                gold_field = gold_field or _first_of(others, row, "--gold_field", source, number)
                gold = _field(row, gold_field, source, number)
            else:
                key = str(_field(row, "problem_id", source, number))
                if key not in golds:
                    raise ConfigError(f"{source}, line {number}: no problem {key!r} in --problems")
                gold = golds[key]
            try:
                gold_texts(gold)
            except (TypeError, RecursionError) as error:
                raise ConfigError(
                    f"{source}, line {number}: {gold_field or 'gold'}: {error}"
                ) from None
            text = _field(row, text_field, source, number)
            if not isinstance(text, str):
                raise ConfigError(
                    f"{source}, line {number}: {text_field} is {type(text).__name__}; "
                    "a response is a string"
                )
            yield _Row(number, text, gold, row)


def _parsed(source: epath.Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{source}, line {number}: not JSON ({error})") from None
    except RecursionError:
        raise ConfigError(f"{source}, line {number}: not JSON (nested too deeply)") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{source}, line {number}: {type(row).__name__}; a row is a JSON object")
    return row


def _field(row: dict[str, Any], name: str, source: epath.Path, number: int) -> Any:
    if name not in row:
        raise ConfigError(
            f"{source}, line {number}: no field {name!r}; there are {', '.join(sorted(row))}"
        )
    return row[name]


def _first_of(names: Any, row: dict[str, Any], flag: str, source: epath.Path, number: int) -> str:
    found = next((name for name in names if name in row), None)
    if found is None:
        raise ConfigError(
            f"{flag}: needed, {source}, line {number} has none of {', '.join(names)}; "
            f"there are {', '.join(sorted(row))}"
        )
    return found
