"""Every id exactly once an epoch, the same order after any resume, no dropped id ever again."""

import collections
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax.config.settings import ConfigError
from polaris_jax.data.loader import PromptLoader
from polaris_jax.data.prompts import PromptFormat
from polaris_jax.records import Problem


class Letters:
    """A tokenizer of code points, without template."""

    chat_template = None

    def encode(self, text):
        return [ord(c) for c in text]


def make_problems(count):
    return [Problem(f"p{i}", f"What is {i} + {i}?", i + i) for i in range(count)]


def make_loader(count, *, batch_size=3, seed=0, dropped_ids=(), problems=None):
    return PromptLoader(
        problems or make_problems(count),
        tokenizer=Letters(),
        prompt_format=PromptFormat(" Go."),
        batch_size=batch_size,
        seed=seed,
        dropped_ids=dropped_ids,
    )


def ids_of(batch):
    return tuple(group.problem_id for group in batch)


def as_json(state):
    return json.loads(json.dumps(state))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_epochs_resumes_and_drops(data):
    """A random life of a loader: draws, resumes in a fresh process, drops."""
    count = data.draw(st.integers(1, 12), label="problems")
    batch_size = data.draw(st.integers(1, 6), label="batch")
    seed = data.draw(st.integers(0, 2**31), label="seed")
    loader = make_loader(count, batch_size=batch_size, seed=seed)
    left = {f"p{i}" for i in range(count)}
    stream, draws, epoch_base = [], collections.Counter(), 0
    actions = st.lists(st.sampled_from(["draw", "draw", "resume", "drop"]), max_size=14)
    for action in data.draw(actions, label="actions"):
        if action == "resume":
            fresh = make_loader(count, batch_size=batch_size, seed=seed)
            fresh.load_state_dict(as_json(loader.state_dict()))
            ahead = [next(loader) for _ in range(2)]
            replayed = make_loader(count, batch_size=batch_size, seed=seed)
            replayed.load_state_dict(as_json(fresh.state_dict()))
            assert [next(replayed) for _ in range(2)] == ahead
            loader = fresh
        elif action == "drop":
            out = data.draw(st.sets(st.sampled_from(sorted(left)), max_size=len(left) - 1))
            assert loader.drop(sorted(out)) == len(out)
            if out:
                epoch_base += -(-len(stream) // len(left))
                left -= out
                stream = []
            assert len(loader) == len(left)
        else:
            assert loader.epoch == epoch_base + len(stream) // len(left)
            batch = next(loader)
            assert len(batch) == batch_size
            assert {group.epoch for group in batch} == {epoch_base + len(stream) // len(left)}
            for group in batch:
                assert group.draw == draws[group.problem_id]
                draws[group.problem_id] += 1
            stream += ids_of(batch)
        for start in range(0, len(stream), len(left)):
            epoch = stream[start : start + len(left)]
            assert len(set(epoch)) == len(epoch), "an id came twice in one epoch"
            assert set(epoch) <= left, "a dropped id came back"
            if len(epoch) == len(left):
                assert set(epoch) == left


def test_rows_belong_to_their_problem():
    batch = next(make_loader(10, batch_size=10))
    assert sorted(ids_of(batch)) == sorted(f"p{i}" for i in range(10))
    for group in batch:
        number = int(group.problem_id[1:])
        assert group.prompt_text == f"What is {number} + {number}? Go."
        assert group.opening == ""
        assert group.prompt == tuple(map(ord, group.prompt_text))
        assert group.gold == 2 * number
        assert group.responses == group.texts == ()
        assert not group.complete


def orders(loader, epochs):
    return [ids_of(next(loader)) for _ in range(epochs)]


def test_order_depends_on_seed_epoch_and_drops():
    """40! orders: equal ones do not occur by chance."""
    first = orders(make_loader(40, batch_size=40), 3)
    assert len(set(first)) == 3
    assert first == orders(make_loader(40, batch_size=40), 3)
    assert first[0] != orders(make_loader(40, batch_size=40, seed=1), 1)[0]
    dropped = make_loader(40, batch_size=39)
    dropped.drop(["p0"])
    assert ids_of(next(dropped)) != tuple(id for id in first[0] if id != "p0")


def test_a_batch_may_straddle_epochs_and_hold_an_id_twice():
    loader = make_loader(2, batch_size=5)
    batch = next(loader)
    assert sorted(collections.Counter(ids_of(batch)).values()) == [2, 3]
    assert {group.epoch for group in batch} == {0}
    assert loader.epoch == 2


def test_dropped_from_the_start():
    loader = make_loader(5, batch_size=8, dropped_ids=["p1", "p3"])
    assert set(ids_of(next(loader))) == {"p0", "p2", "p4"}
    assert loader.dropped_ids == ("p1", "p3")
    assert loader.drop(["p1"]) == 0
    assert loader.drop(["p1", "p0"]) == 1
    assert loader.dropped_ids == ("p1", "p3", "p0")
    assert set(ids_of(next(loader))) == {"p2", "p4"}


class Counted(str):
    """An id that counts how often it is hashed."""

    hashes = 0

    def __hash__(self):
        Counted.hashes += 1
        return super().__hash__()


def test_dropping_takes_time_by_the_number_of_ids():
    """A stage drops thousands of problems, on top of those that were out before."""
    ids = [Counted(f"p{i}") for i in range(400)]
    loader = make_loader(400)
    loader.drop(ids[:200])
    Counted.hashes = 0
    assert loader.drop(ids[:399]) == 199
    assert Counted.hashes < 20 * len(ids)


def test_a_resumed_loader_forgets_its_own_drops():
    loader = make_loader(5)
    state = as_json(loader.state_dict())
    expected = next(loader)
    loader.drop(["p0", "p1"])
    loader.load_state_dict(state)
    assert next(loader) == expected


def test_refusals_leave_the_loader_as_it_was():
    loader = make_loader(3)
    state = loader.state_dict()
    with pytest.raises(ConfigError, match="no problem remains of 3 after dropping 3"):
        loader.drop(["p0", "p1", "p2"])
    with pytest.raises(ValueError, match="'q' is not among the problems"):
        loader.drop(["q"])
    assert loader.state_dict() == state


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dropped_ids": ["p0", "p1", "p2"]}, "no problem remains"),
        ({"dropped_ids": ["q"]}, "'q' is not among"),
        ({"batch_size": 0}, "rollout.prompts_per_step=0"),
        ({"problems": make_problems(2) + make_problems(1)}, "id 'p0' occurs twice"),
    ],
    ids=["all dropped", "unknown id", "batch", "twice"],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_loader(3, **kwargs)


@pytest.mark.parametrize("kwargs", [{"seed": 1}, {"problems": make_problems(4)[::-1]}])
def test_a_state_of_other_data_is_refused(kwargs):
    state = make_loader(4).state_dict()
    with pytest.raises(ConfigError, match="other problems, another suffix or another seed"):
        make_loader(4, **kwargs).load_state_dict(state)


def test_a_state_without_a_field_is_refused_and_changes_nothing():
    loader = make_loader(4)
    next(loader)
    state = loader.state_dict()
    for name in state:
        with pytest.raises(ValueError, match=f"state holds no '{name}'"):
            loader.load_state_dict({key: value for key, value in state.items() if key != name})
    assert loader.state_dict() == state


def test_fewer_than_no_prompts():
    loader = make_loader(4)
    assert len(loader.take(0)) == 0
    with pytest.raises(ValueError, match="count=-1: must not be negative"):
        loader.take(-1)


def drawn(loader, batches, weights):
    return [ids_of(loader.take(3, weights=weights)) for _ in range(batches)]


def test_a_weighted_draw_follows_its_weights_and_resumes():
    weights = {"p0": 4.0, "p1": 2.0, "p2": 1.0, "p3": 1.0, "p4": 0.0}
    loader = make_loader(5, batch_size=1)
    firsts = collections.Counter(loader.take(1, weights=weights)[0].problem_id for _ in range(2000))
    for problem_id, weight in weights.items():  # within four standard errors of a binomial
        share = weight / 8
        assert abs(firsts[problem_id] - 2000 * share) <= 4 * (2000 * share * (1 - share)) ** 0.5
    fresh = make_loader(5, batch_size=1)
    fresh.load_state_dict(as_json(loader.state_dict()))
    assert drawn(fresh, 20, weights) == drawn(loader, 20, weights)
    assert fresh.state_dict() == loader.state_dict()


def test_a_weighted_batch_holds_no_problem_twice_until_all_are_drawn():
    weights = {"p0": 1e6, "p1": 1.0, "p2": 1e-6, "p3": 0.0}
    loader = make_loader(4, dropped_ids=["p3"])
    for _ in range(20):
        assert sorted(ids_of(loader.take(3, weights=weights))) == ["p0", "p1", "p2"]
    assert sorted(ids_of(loader.take(6, weights=weights))) == ["p0", "p0", "p1", "p1", "p2", "p2"]
    draws = [group.draw for group in loader.take(1, weights={**weights, "p1": 0.0, "p2": 0.0})]
    assert draws == [22]
