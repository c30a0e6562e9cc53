"""The store of earlier responses keeps to its bounds, and a checkpoint holds it."""

import copy
import io

import numpy as np

from polaris_jax.checkpoint.snapshots import canonical_json, read_host
from polaris_jax.rollout.draft_store import DraftStore


def lengths(store: DraftStore, problem_id: str) -> list[int]:
    return [len(text) for text in store.texts(problem_id)]


def text(length: int, token: int = 1) -> list[int]:
    return [token] * length


def test_the_newest_visit_comes_first_and_of_a_visit_the_longest():
    store = DraftStore(1000, prompt_tokens=10)
    store.record(["a"], [[text(2), text(5, 7), text(4)]])
    assert lengths(store, "a") == [4, 5]  # the oldest first: the longest is drafted from first
    assert store.texts("a")[-1].tolist() == text(5, 7)
    store.record(["a"], [[text(3, 9), text(0)]])
    assert lengths(store, "a") == [5, 3]
    assert store.tokens == 8
    assert store.texts("b") == ()


def test_a_full_store_keeps_its_problems():
    store = DraftStore(10, prompt_tokens=6)
    store.record(["a", "b", "c"], [[text(6)], [text(4)], [text(1)]])
    assert [lengths(store, i) for i in "abc"] == [[6], [4], []]
    store.record(["b"], [[text(3)]])
    assert lengths(store, "b") == [3]  # its former one has no room beside it
    store.record(["c"], [[text(2), text(1)]])
    assert lengths(store, "c") == [1]
    store.drop({"a", "unknown"})
    assert store.tokens == 4
    store.record(["c"], [[text(2)]])
    assert lengths(store, "c") == [1, 2]


def test_a_store_without_room_stays_empty():
    store = DraftStore()
    store.record(["a"], [[text(1)]])
    assert store.array_state() == {"problems": []}


def test_a_copy_does_not_see_later_visits():
    store = DraftStore(100)
    store.record(["a"], [[text(2)]])
    other = copy.copy(store)
    store.record(["a", "b"], [[text(3)], [text(4)]])
    assert (lengths(other, "a"), lengths(other, "b"), other.tokens) == ([2], [], 2)


def test_a_checkpoint_holds_it():
    store = DraftStore(100)
    store.record(["a", "b"], [[text(2, 5), text(3)], [text(4)]])
    saved, arrays = canonical_json({"drafts": store.array_state()}, "run")
    read = read_host(saved, lambda: io.BytesIO(b"".join(a.tobytes() for a in arrays)))
    again = DraftStore(100)
    again.load_state_dict(read["drafts"])
    for problem_id in "ab":
        for one, other in zip(store.texts(problem_id), again.texts(problem_id), strict=True):
            np.testing.assert_array_equal(one, other)
            assert other.dtype == np.int32
    assert again.tokens == store.tokens
    smaller = DraftStore(5)
    smaller.load_state_dict(read["drafts"])
    assert (lengths(smaller, "a"), lengths(smaller, "b")) == ([2, 3], [])
