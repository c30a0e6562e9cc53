"""`polaris evaluate --compare A B ...`: evaluations of the same problems in one table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from polaris_jax.config import ConfigError
from polaris_jax.evaluate.comparison import Evaluated, compared, comparison_lines
from polaris_jax.evaluate.scoring import Part, Row, parts_of
from polaris_jax.report.evaluations import evaluations_figure
from polaris_jax.report.run_files import read_evaluation
from polaris_jax.run.progress_file import recorded_settings
from polaris_jax.run.workdir import write_json
from polaris_jax.system.files import matching, write_bytes
from polaris_jax.system.foreign import ForeignFileError, bounded_lines, open_regular, parse_json

EVALUATED = "eval.json"
RESULT = "eval_compared"
# What the names of two evaluations' files add to their common beginning.
_RESPONSES = re.compile(r"((?:.+_)?)responses((?:_yarn(?:_[0-9.e+-]+)?)?)\.jsonl")
_EVAL = re.compile(r"((?:.+_)?)eval\.json")
NUMBERS = ("reward", "tokens", "sample")
KEPT = ("problem_id", *NUMBERS, "answer", "pooled_set")  # columns; texts and ids are left out
FORMS = (
    "name a workdir that `polaris evaluate` has filled, one of its eval.json files, or a "
    "responses.jsonl with its eval.json beside it"
)


def compare_evaluations(
    sources: Sequence[epath.Path],
    names: Sequence[str],
    out: epath.Path,
    *,
    say: Callable[[str], None],
    prefix: str = "",
) -> dict[str, Any]:
    """Evaluations in one table, with paired differences -> eval_compared.json, .md and .png.

    An eval.json that scores several ways to sample, as with evaluate.yarn=both, is several
    evaluations.

    Args:
        sources: workdirs, eval.json files or responses.jsonl files.
        names: a name for each.
        out: directory of the three files; made if it is not there.
        say: gets lines for a person.
        prefix: put before the file names.

    Returns:
        The content of eval_compared.json.

    Raises:
        ConfigError: a source holds no evaluation.
    """
    evaluated = [
        found for source, name in zip(sources, names, strict=True) for found in _read(source, name)
    ]
    if len(evaluated) < 2:
        raise ConfigError(f"--compare={sources[0]}: holds one evaluation; {FORMS}")
    summary = compared(evaluated)
    for text in summary["warnings"]:
        say(f"warning: {text}")
    lines = comparison_lines(summary)
    for line in lines:
        say(line)
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{prefix}{RESULT}"
    write_json(out / f"{stem}.json", summary)
    write_bytes(out / f"{stem}.md", "\n".join([*lines, ""]).encode())
    evaluations_figure(summary, out / f"{stem}.png")
    say(f"table: {out / f'{stem}.md'}; figure: {out / f'{stem}.png'}")
    return summary


def _read(source: epath.Path, name: str) -> Iterator[Evaluated]:
    """The evaluations that a source holds."""
    if source.is_dir():
        if not (source / EVALUATED).exists():
            tagged = [path.name for path in matching(source, f"*_{EVALUATED}")]
            more = f" (it has {', '.join(tagged)}: name one)" if tagged else ""
            raise ConfigError(f"--compare={source}: has no {EVALUATED}{more}; {FORMS}")
        source = source / EVALUATED
    if found := _RESPONSES.fullmatch(source.name):
        summary = _summary(source.with_name(f"{found[1]}{EVALUATED}"))
        for part in parts_of(summary):
            if part.suffix == found[2]:
                yield _evaluated(f"{name}{_extra(part)}", source, part, summary)
                return
        raise ConfigError(
            f"--compare={source}: {found[1]}{EVALUATED} beside it does not score it; {FORMS}"
        )
    if not (found := _EVAL.fullmatch(source.name)):
        raise ConfigError(f"--compare={source}: is neither; {FORMS}")
    summary = _summary(source)
    for part in parts_of(summary):
        path = source.with_name(f"{found[1]}responses{part.suffix}.jsonl")
        yield _evaluated(f"{name}{_extra(part)}", path, part, summary)


def _summary(path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        raise ConfigError(f"--compare={path}: there is no such file; {FORMS}")
    return read_evaluation(path)


def _extra(part: Part) -> str:
    """What a name gets for the way to sample."""
    return f"{', YaRN' * part.scaled}{f', attention {part.attention}' if part.attention else ''}"


def _evaluated(name: str, path: epath.Path, part: Part, summary: Mapping[str, Any]) -> Evaluated:
    if not path.exists():
        raise ConfigError(f"--compare={path}: there is no such file; {FORMS}")
    rows, questions = [], {}
    for row in _rows(path):
        rows.append({name: row.get(name) for name in KEPT})
        questions[row["problem_id"]] = row.get("question"), row.get("gold")
    if not rows:
        raise ConfigError(f"--compare={path}: holds no responses; {FORMS}")
    counts = Counter(row["problem_id"] for row in rows)
    most = max(counts.values())
    if min(counts.values()) < most:
        raise ConfigError(
            f"--compare={path}: some problems have {min(counts.values())} responses and others "
            f"{most}; run the evaluation to its end"
        )
    figures = dict(part.figures) | {"checkpoint": summary.get("checkpoint")}
    correct_at = summary.get("correct_at", 1.0)
    settings = dict(recorded_settings(path))
    if part.attention:  # the evaluation's own says it, and not the config's
        settings.pop("rope.yarn.attention_factor", None)
    return Evaluated(name, str(path), figures, rows, correct_at, questions, settings)


def _rows(path: epath.Path) -> Iterator[Row]:
    """The rows."""
    with open_regular(path) as file:
        for number, line in bounded_lines(file):
            try:
                if line is None:
                    raise ForeignFileError("is too long")
                row = parse_json(line, where=f"{path}:{number}", strict=False)
            except ForeignFileError as error:
                raise ConfigError(f"--compare={path}: line {number}: {error}; {FORMS}") from None
            if set(row) == {"identity"}:  # versions up to 0.2 began files with their settings
                continue
            if not isinstance(row.get("problem_id"), str) or not all(
                isinstance(row.get(name), int | float) for name in NUMBERS
            ):
                raise ConfigError(f"--compare={path}: line {number}: no response; {FORMS}")
            if not 0 <= row["reward"] <= 1:
                raise ConfigError(
                    f"--compare={path}: line {number}: reward={row['reward']}: must be in [0, 1]; "
                    "run the evaluation anew"
                )
            yield row
