"""The cache of verdicts: the least recently used goes first, both bounds hold."""

from polaris_jax.reward.grader import VerdictCache
from polaris_jax.reward.math.equivalence import Explanation

EQUAL = Explanation(True, "exact", "", "a", "b")


def test_the_least_recently_used_goes_first() -> None:
    cache = VerdictCache(max_pairs=2, max_chars=1000)
    cache.put(("1", ("1",)), EQUAL)
    cache.put(("2", ("2",)), EQUAL)
    assert cache.get(("1", ("1",))) == EQUAL
    cache.put(("3", ("3",)), EQUAL)
    assert cache.get(("2", ("2",))) is None
    assert cache.get(("1", ("1",))) == EQUAL


def test_characters_are_bounded() -> None:
    cache = VerdictCache(max_pairs=1000, max_chars=500)
    for index in range(300):
        cache.put((str(index) * 20, ("5" * (index % 7),)), EQUAL)
        assert cache.chars <= 500
    assert 0 < len(cache) < 20
    cache.put(("x" * 1000, ("5",)), EQUAL)  # larger than all of it
    assert (len(cache), cache.chars) == (0, 0)


def test_no_pairs_is_no_cache() -> None:
    cache = VerdictCache(max_pairs=0, max_chars=1000)
    cache.put(("1", ("1",)), EQUAL)
    assert cache.get(("1", ("1",))) is None
