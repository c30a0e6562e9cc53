"""A plan refuses the slots that a run refuses."""

import pytest

from polaris_jax.config import ConfigError, check_slots


@pytest.mark.parametrize(("slots", "data", "ok"), [(64, 8, True), (64, 6, False), (64, 0, True)])
def test_slots_are_split_evenly(slots, data, ok):
    if ok:
        check_slots(slots, data)
    else:
        with pytest.raises(ConfigError, match=r"rollout.slots=64: must be a multiple .* data=6"):
            check_slots(slots, data)
