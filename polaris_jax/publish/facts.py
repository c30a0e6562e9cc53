"""What a model card says of a run, read from the run's files; what is missing is named.

Only reads. Nothing is fetched: a licence is taken from a README.md that is on this machine.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from polaris_jax.evaluate.scoring import FAILED, parts_of
from polaris_jax.run.progress_file import recorded_settings
from polaris_jax.run.record import LOCAL
from polaris_jax.run.standing import Standing, read_standing
from polaris_jax.system.files import as_place, is_remote, matching, names_a_place
from polaris_jax.system.foreign import (
    CONFIG_BYTES,
    RECORD_BYTES,
    ForeignFileError,
    read_json,
    read_text,
)

README = "README.md"
WARM_START = "a small model of the warm start"
ARITHMETIC = "word problems that polaris_jax makes itself"
OWN = "none of others: made by the run"
_FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
# One licence, alone or as a list of one; of several nothing is known.
_LICENSE = re.compile(
    r"^license:[ \t]*(?:\n[ \t]*-[ \t]*)?[\"']?([\w.+-]+)[\"']?[ \t]*$(?!\n[ \t]*-)", re.M
)
# What a card says beside `license: other`; a link to a file of its own repository is left out.
_LICENSE_NAME = re.compile(r"^license_name:[ \t]*[\"']?([^\s\"'#]+)[\"']?[ \t]*$", re.M)
_LICENSE_LINK = re.compile(r"^license_link:[ \t]*[\"']?(https?://[^\s\"'#]+)[\"']?[ \t]*$", re.M)
_FILES = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".gguf", ".py")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclasses.dataclass(frozen=True)
class Origin:
    """A base model or a source of problems.

    Attributes:
        name: its Hub id, or its path as `place_name` gives it; empty: unknown.
        license: the identifier in its card, or OWN; empty: unknown.
        hub_id: the Hub id, if it was named by one; else empty.
        doubtful: True if the name may be a Hub id or a path of another machine.
        license_name: what its card calls the license `other`; empty: unknown.
        license_link: where that card says it can be read; empty: unknown.
    """

    name: str
    license: str = ""
    hub_id: str = ""
    doubtful: bool = False
    license_name: str = ""
    license_link: str = ""


@dataclasses.dataclass(frozen=True)
class Score:
    """A score of an eval.json, which may have several.

    Attributes:
        weights: name of the weights, and the tag.
        yarn: off, on, or on with another attention factor than the config's.
        problems: `evaluate.problems` of the responses; empty: the held-out problems of
            polaris_jax. None: unknown.
        figures: its part of the eval.json.
    """

    weights: str
    yarn: str
    problems: str | None
    figures: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What the files of a workdir say.

    Attributes:
        standing: run.json, stages, steps and scores.
        base: the base model.
        data: the sources of the training problems, with the number of problems kept of each (None:
            unknown).
        evaluations: the scores, in the order of their files.
        documents: {name: content} of prepare.json, calibrate.json and probe.json, if there.
        unknown: what could not be known, one sentence each.
    """

    standing: Standing
    base: Origin
    data: tuple[tuple[Origin, int | None], ...]
    evaluations: tuple[Score, ...]
    documents: Mapping[str, Mapping[str, Any]]
    unknown: tuple[str, ...]

    @property
    def record(self) -> dict[str, Any]:
        """The content of run.json."""
        return self.standing.record

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the run by their names."""
        config = self.record.get("config")
        return config if isinstance(config, dict) else {}


def read_facts(workdir: epath.Path) -> RunFacts:
    """The facts of the run in `workdir`."""
    unknown: list[str] = []
    documents = {
        name: found
        for name in ("prepare.json", "calibrate.json", "probe.json")
        if (found := _document(workdir / name, unknown)) is not None
    }
    standing = read_standing(workdir)
    config = standing.record.get("config")
    config = config if isinstance(config, dict) else {}
    facts = RunFacts(
        standing=standing,
        base=_base(standing.record, config),
        data=_data(standing.record, config, documents.get("prepare.json")),
        evaluations=_evaluations(workdir, unknown),
        documents=documents,
        unknown=(),
    )
    return dataclasses.replace(facts, unknown=(*unknown, *_missing(facts)))


def license_of(name: str, *, hub_kind: str = "") -> str:
    """The `license` in the head of a README.md beside a model or data set; empty if unknown.

    Args:
        name: a directory or file, or a Hub id that has been downloaded.
        hub_kind: what the Hub calls it, model or dataset; empty for a directory or file.
    """
    return _in_head(_LICENSE, _head(name, hub_kind))


def _head(name: str, hub_kind: str) -> str:
    """The head of the README.md beside a model or data set; empty if there is none."""
    try:
        text = read_text(_card_of(name, hub_kind), most_bytes=CONFIG_BYTES)
    except (OSError, ValueError):  # no README.md, or none that can be read
        return ""
    head = _FRONT_MATTER.match(text.replace("\r\n", "\n"))
    return head[1] if head else ""


def _in_head(field: re.Pattern[str], head: str) -> str:
    found = field.search(head)
    return found[1] if found else ""


def place_name(name: str) -> str:
    """A path or Hub id as strangers may see it: without the folders of this machine.

    Args:
        name: a path, a Hub id or another text. Several may be pooled with + or listed with commas,
            and the options of a source may stand behind a comma.
    """

    def part(text: str) -> str:
        foreign = text.startswith(("/", "~")) or is_remote(text)
        return f".../{text.rstrip('/').rpartition('/')[2]}" if foreign else text

    return "".join(map(part, re.split(r"([,+])", name)))


def _card_of(name: str, hub_kind: str) -> epath.Path:
    if not hub_kind:
        place = as_place(name)
        return (place if place.is_dir() else place.parent) / README
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, README, repo_type=hub_kind)
    if not isinstance(found, str):
        raise FileNotFoundError(2, "not downloaded", name)
    return epath.Path(found)


def _downloaded(name: str, hub_kind: str) -> bool:
    """True if a repository of the Hub lies in this machine's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return epath.Path(HF_HUB_CACHE, f"{hub_kind}s--{name.replace('/', '--')}").is_dir()


def _origin(name: str, hub_kind: str, *, local: bool | None) -> Origin:
    """What is known of a name.

    Args:
        name: a path or a Hub id; options may stand behind a comma.
        hub_kind: what the Hub would call it: model or dataset.
        local: True if it was a path of the machine that read it; None: not recorded.
    """
    place = name.partition(",")[0]
    may_be_hub = bool(_HUB_ID.fullmatch(place)) and not place.endswith(_FILES)
    is_hub = may_be_hub and not (names_a_place(place) if local is None else local)
    # A run of an earlier version recorded nothing; a path of another folder looks like a Hub id.
    doubtful = is_hub and local is None and not _downloaded(place, hub_kind)
    is_hub = is_hub and not doubtful
    head = _head(place, hub_kind if is_hub else "") if place else ""
    origin = Origin(place_name(name), _in_head(_LICENSE, head), place if is_hub else "", doubtful)
    if origin.license != "other":
        return origin
    return dataclasses.replace(
        origin,
        license_name=_in_head(_LICENSE_NAME, head),
        license_link=_in_head(_LICENSE_LINK, head),
    )


def _is_local(record: Mapping[str, Any], name: str) -> bool | None:
    """Whether a setting named a path of the machine that trained; None if it is not recorded."""
    local = record.get(LOCAL)
    return name in local if isinstance(local, list) else None


def _base(record: Mapping[str, Any], config: Mapping[str, Any]) -> Origin:
    path = config.get("model.path")
    if not isinstance(path, str):
        return Origin("")
    if not path:
        return Origin(WARM_START, license=OWN) if config.get("warmstart.steps") else Origin("")
    return _origin(path, "model", local=_is_local(record, "model.path"))


def _data(
    record: Mapping[str, Any], config: Mapping[str, Any], prepared: Mapping[str, Any] | None
) -> tuple[tuple[Origin, int | None], ...]:
    sources = (prepared or {}).get("sources")
    if isinstance(sources, dict) and all(isinstance(s, dict) for s in sources.values()):
        named = [
            (str(s.get("source", "")), s.get("kept"), s.get("local")) for s in sources.values()
        ]
    else:
        local = _is_local(record, "data.problems")
        named = [(str(config.get("data.problems") or ""), None, local)]
    found = []
    for name, kept, local in named:
        if not name and config.get("data.arithmetic.train"):
            origin = Origin(ARITHMETIC, license=OWN)
        else:
            origin = _origin(name, "dataset", local=local if type(local) is bool else None)
        found.append((origin, kept if type(kept) is int else None))
    return tuple(found)


def _document(path: epath.Path, unknown: list[str]) -> dict[str, Any] | None:
    """The content of a JSON object; None if there is no file, or a damaged one, which is named."""
    if not path.exists():
        return None
    try:
        return read_json(path, most_bytes=RECORD_BYTES, strict=False)
    except (OSError, ForeignFileError) as error:
        unknown.append(f"{path.name} cannot be read ({type(error).__name__}); it was left out.")
        return None


def _evaluations(workdir: epath.Path, unknown: list[str]) -> tuple[Score, ...]:
    """The scores of every eval.json; a file that has none is named."""
    scores = []
    for path in matching(workdir, "*eval.json"):
        found = _document(path, unknown)
        if found is None:
            continue
        if not _is_score(found):
            unknown.append(f"{path.name} is not what `polaris evaluate` leaves; it was left out.")
            continue
        prefix = path.name.removesuffix("eval.json")
        name = _score_name(found, prefix.rstrip("_"))
        for part in parts_of(found):
            if _is_score(part.figures):
                yarn = "on" if part.scaled else "off"
                yarn += f", attention {part.attention}" if part.attention else ""
                problems = _asked(workdir / f"{prefix}responses{part.suffix}.jsonl")
                scores.append(Score(name, yarn, problems, part.figures))
    return tuple(scores)


def _asked(responses: epath.Path) -> str | None:
    """`evaluate.problems` by the file beside the responses; None if it does not say."""
    problems = recorded_settings(responses).get("evaluate.problems")
    return problems if isinstance(problems, str) else None


def _is_score(found: Any) -> bool:
    if not isinstance(found, dict):
        return False
    numbers = [found.get(name) for name in ("avg@k", "temperature")]
    counts = [found.get(name) for name in ("k", "problems", "max_response_tokens")]
    interval = found.get("interval")
    return (
        all(isinstance(x, int | float) and math.isfinite(x) for x in numbers)
        and all(type(x) is int for x in counts)
        and (interval is None or (isinstance(interval, list) and len(interval) == 2))
        and all(isinstance(x, int | float) for x in interval or ())
    )


def _score_name(found: Mapping[str, Any], tag: str) -> str:
    checkpoint = found.get("checkpoint") or "base"
    named = {"base": "base model", "latest": "newest checkpoint"}
    what = named.get(checkpoint, place_name(str(checkpoint)))
    return f"{what} ({tag})" if tag else what


def _missing(facts: RunFacts) -> list[str]:
    """One sentence for everything that the files do not say."""
    record, found = facts.record, []
    if not record:
        found.append("There is no readable run.json: config, commit and versions are unknown.")
    commit = record.get("commit")
    if record and not commit:
        found.append("The run was not started from a git tree: its commit is unknown.")
    elif commit and str(commit).endswith("-dirty"):
        found.append("The source tree had edits that the commit does not contain.")
    if record and not record.get("devices"):
        found.append("run.json does not name the hardware.")
    if record and not facts.standing.finished:
        found.append(f"The run has not ended: {facts.standing.steps} steps are done.")
    if record.get("deterministic") is False:
        found.append("More than config, data and seed decided a result (run.json: deterministic).")
    if not any("newest checkpoint" in score.weights for score in facts.evaluations):
        found.append("No evaluation of the newest checkpoint is in the workdir.")
    if unnamed := sorted({s.weights for s in facts.evaluations if s.problems is None}):
        found.append(f"Which problems were asked for the scores of {', '.join(unnamed)}.")
    for score in facts.evaluations:
        if type(failed := score.figures.get(FAILED)) is int:
            found.append(
                f"Whether {failed} responses of {score.weights} (YaRN {score.yarn}) are right: "
                "grading failed, and they count as wrong."
            )
    found.append("Which checkpoint the export was made of is not recorded in it.")
    if not facts.base.license:
        found.append(f"The licence of the base model ({facts.base.name or 'unknown'}).")
    for origin in (facts.base, *(origin for origin, _ in facts.data)):
        if origin.doubtful:
            found.append(f"Whether {origin.name} is a path, or a repository of the Hub.")
    for origin, kept in facts.data:
        if not origin.license:
            found.append(f"The licence of the problems ({origin.name or 'unknown'}).")
        if kept is None:
            found.append(f"How many problems of {origin.name or 'the source'} were kept.")
    return found
