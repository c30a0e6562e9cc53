"""No schedule changes a token or its log-prob: the engine, two sets of weights that take turns.

Every response is held against dense recomputation, each token under the weights that
`Response.versions` names; what one set alone has sampled also against a sampler that has no other
request.
"""

import hypothesis
import pytest

from tests.support.rollout.engine_run import SIZES, EngineRun, check_engine, config_of, configs
from tests.support.rollout.rollout_cases import CONFIG
from tests.support.rollout.schedules import Act, Submit, cases, schedules

SCHEDULES = schedules(CONFIG.vocab_size, 8, temperatures=(0.0, 1.1))


@cases(10)
@hypothesis.given(configs(SIZES[:1], 1), SCHEDULES)
def test_10_schedules(config, schedule):
    check_engine(config, 1, schedule)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@cases(200)
@hypothesis.given(configs(SIZES, 1), SCHEDULES)
def test_200_schedules(config, schedule):
    check_engine(config, 1, schedule)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@cases(30)
@hypothesis.given(configs(SIZES[:2], 2), SCHEDULES)
def test_30_schedules_on_two_shards(config, schedule):
    check_engine(config, 2, schedule)


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
def test_each_version_of_a_greedy_response_is_what_its_weights_give(cache):
    act = Submit(((3, 1, 4, 1, 5),) * 2, (0, 1), 2, 20, False, None, 0.0)
    run = EngineRun(config_of(SIZES[0], 1, prefix_cache=cache), 1)
    for what in (act, Act("step"), Act("update"), Act("step"), Act("update"), Act("step")):
        run.act(what)
    run.check()
    (((_, request, answers)),) = run.asked
    assert request.num_done == len(answers) == 4
    for response in answers.values():
        assert [version for version, _ in response.versions] == [0, 1, 2]
