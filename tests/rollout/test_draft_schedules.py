"""No draft changes a token or its log-prob, on any schedule: see `engine_run`.

Drafts are right, stale (of other weights) or nonsense; pools are tiny; requests are aborted, left
and continued; the sampler pauses, takes new weights and releases its pool.
"""

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.support.rollout.engine_run import SIZES, check_engine, configs
from tests.support.rollout.rollout_cases import CONFIG
from tests.support.rollout.schedules import cases, schedules

SCHEDULES = schedules(CONFIG.vocab_size, 8, temperatures=(0.0, 1.1))
HISTORY = st.just("history")
WRONG = st.sampled_from([0.0, 0.1, 0.5, 1.0])


def test_4_schedules():
    accepted = []

    @cases(4)
    @hypothesis.given(
        configs(SIZES[:1], 1, draft=HISTORY, draft_tokens=st.just(3)), SCHEDULES, WRONG
    )
    def check(config, schedule, wrong):
        accepted.append(check_engine(config, 1, schedule, wrong=wrong))

    check()
    assert sum(accepted) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_200_schedules():
    accepted = []

    @cases(200)
    @hypothesis.given(
        configs(SIZES, 1, draft=HISTORY, draft_tokens=st.sampled_from([1, 3, 8])),
        SCHEDULES,
        WRONG,
    )
    def check(config, schedule, wrong):
        accepted.append(check_engine(config, 1, schedule, wrong=wrong))

    check()
    assert sum(count > 0 for count in accepted) > 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
@cases(30)
@hypothesis.given(configs(SIZES[:2], 2, draft=HISTORY, draft_tokens=st.just(3)), SCHEDULES, WRONG)
def test_30_schedules_on_two_shards(config, schedule, wrong):
    check_engine(config, 2, schedule, wrong=wrong)
