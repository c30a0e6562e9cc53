"""Which problems a command uses: by the digest of what a file was made of, not by its name."""

import dataclasses
import json

import pytest
from etils import epath

from polaris_jax.config import ConfigError
from polaris_jax.config.data import ArithmeticSection, DataSection
from polaris_jax.data.problem_sets import CURATED, PREPARED, find_training_problems
from polaris_jax.data.problems import problems_digest, write_problems
from polaris_jax.records import Problem

NUMBERS = [Problem(f"p{i}", f"What is {i}?", str(i)) for i in range(6)]
MADE = [Problem(f"made{i}", f"Made {i}?", str(i)) for i in range(3)]


class Workdir:
    """A workdir, the file that `data.problems` names, and what was said."""

    def __init__(self, place: epath.Path) -> None:
        self.place, self.said = place, []
        self.source = place.parent / "problems.jsonl"
        self.give(NUMBERS)

    def give(self, problems) -> None:
        """Writes the file that `data.problems` names."""
        rows = [{"id": p.id, "problem": p.problem, "answer": p.answer, **p.extra} for p in problems]
        self.source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def find(self, *, named=True, arithmetic=0, **options):
        data = DataSection(
            problems=str(self.source) if named else "", arithmetic=ArithmeticSection(arithmetic)
        )
        return find_training_problems(
            data, self.place, self.said.append, make=lambda: MADE, **options
        )

    def prepare(self, **options) -> None:
        """What `prepare` leaves: here the last problem's prompt is too long."""
        found = self.find(files=(), **options)
        write_problems(found.problems[:-1], self.place / PREPARED, made_of=found.made_of())

    def calibrate(self, **options) -> None:
        """What `calibrate` leaves: here every second problem is curated away."""
        found = self.find(files=(PREPARED,), **options)
        write_problems(found.problems[::2], self.place / CURATED, made_of=found.made_of())


@pytest.fixture
def workdir(tmp_path):
    place = epath.Path(tmp_path) / "run"
    place.mkdir()
    return Workdir(place)


def ids(found) -> list[str]:
    return [p.id for p in found.problems]


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_the_curated_set_is_used_also_where_every_command_names_the_problems(
    workdir, named, prepared
):
    arithmetic = 0 if named else 3
    if prepared:
        workdir.prepare(named=named, arithmetic=arithmetic)
    workdir.calibrate(named=named, arithmetic=arithmetic)
    found = workdir.find(named=named, arithmetic=arithmetic)
    assert (found.place, workdir.said) == (CURATED, [])
    expected = ["p0", "p2", "p4"] if named else ["made0", "made2"][: 1 if prepared else 2]
    assert ids(found) == expected
    assert found.why.startswith("made of ")


def test_the_source_is_used_where_nothing_was_made_of_it(workdir):
    found = workdir.find()
    assert (found.place, found.origin) == ("", f"data.problems={workdir.source}")
    assert found.why == "no curated.parquet or problems.parquet in the workdir"
    assert ids(found) == [p.id for p in NUMBERS]
    assert ids(workdir.find(named=False, arithmetic=3)) == [p.id for p in MADE]
    with pytest.raises(ConfigError, match=r"data\.problems='': no problems; name a file"):
        workdir.find(named=False)


def test_with_no_files_asked_for_the_source_is_read(workdir):
    workdir.prepare()
    workdir.calibrate()
    assert ids(workdir.find(files=())) == [p.id for p in NUMBERS]


CHANGES = {
    "a row more": [*NUMBERS, Problem("new", "New?", "1")],
    "a row less": NUMBERS[1:],
    "an answer": [dataclasses.replace(NUMBERS[0], answer="9"), *NUMBERS[1:]],
    "a text": [dataclasses.replace(NUMBERS[0], problem="What?"), *NUMBERS[1:]],
    "an extra column": [dataclasses.replace(NUMBERS[0], extra={"tests": [1]}), *NUMBERS[1:]],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("made", [CURATED, PREPARED])
def test_a_file_that_was_made_of_other_problems_is_refused_with_both_names(workdir, made, change):
    workdir.prepare() if made == PREPARED else workdir.calibrate()
    workdir.give(CHANGES[change])
    with pytest.raises(ConfigError) as refused:
        workdir.find()
    text = str(refused.value)
    assert f"data.problems={workdir.source} (digest " in text
    assert f"{workdir.place / made} was made of other problems: " in text
    command = "calibrate" if made == CURATED else "prepare"
    assert f"run `polaris {command}` again" in text
    assert "data.use=problems" in text


def test_the_order_of_the_rows_does_not_count(workdir):
    workdir.calibrate()
    workdir.give(NUMBERS[::-1])
    assert workdir.find().place == CURATED


def test_a_curated_set_of_former_prepared_problems_is_refused(workdir):
    """Also without `data.problems`: problems.parquet was written anew since."""
    workdir.prepare()
    workdir.calibrate(named=False)
    assert workdir.find(named=False).place == CURATED
    workdir.give(NUMBERS[1:])
    workdir.prepare()
    with pytest.raises(ConfigError, match=r"problems\.parquet \(digest .* made of other problems"):
        workdir.find(named=False)
    workdir.calibrate()
    assert workdir.find().place == CURATED


@pytest.mark.parametrize("made", [CURATED, PREPARED])
def test_a_file_of_an_earlier_version_is_used_with_one_warning(workdir, made):
    write_problems(NUMBERS[:2], workdir.place / made)
    assert ids(workdir.find()) == ["p0", "p1"]
    (said,) = workdir.said
    assert said.startswith(f"warning: {workdir.place / made} does not record what it was made of")


def test_a_curated_set_of_a_prepared_file_of_an_earlier_version(workdir):
    """The chain back to `data.problems` is not known, so it warns and does not refuse."""
    write_problems(NUMBERS[:-1], workdir.place / PREPARED)
    workdir.calibrate()
    workdir.said.clear()
    assert workdir.find().place == CURATED
    assert [line.partition(":")[0] for line in workdir.said] == ["warning"]


@pytest.mark.parametrize("place", ["", PREPARED, CURATED])
def test_a_resume_keeps_the_set_that_the_run_began_with(workdir, place):
    workdir.prepare()
    workdir.calibrate()
    found = workdir.find(began_with=place)
    assert (found.place, found.why) == (place, "the run began with it")
    assert len(found.problems) == {"": 6, PREPARED: 5, CURATED: 3}[place]


def test_a_resume_whose_set_is_gone_is_refused(workdir):
    with pytest.raises(ConfigError, match=r"curated\.parquet: the run in this workdir began with"):
        workdir.find(began_with=CURATED)


def test_a_digest_tells_contents_apart_and_not_the_order():
    digest = problems_digest(NUMBERS, extras=True)
    assert problems_digest(NUMBERS[::-1], extras=True) == digest
    others = [problems_digest(problems, extras=True) for problems in CHANGES.values()]
    assert len({digest, *others}) == 1 + len(CHANGES)
    extra = CHANGES["an extra column"]
    assert problems_digest(extra) == problems_digest(NUMBERS)
