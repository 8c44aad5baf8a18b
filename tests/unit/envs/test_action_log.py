from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from metta_ray.envs.action_log import ActionLog


@settings(max_examples=60, deadline=None)
@given(ends=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=60))
def test_log_holds_exactly_the_actions_of_each_running_episode(ends: list[list[bool]]) -> None:
    actions = np.zeros((3, 2), np.int32)
    log = ActionLog(actions, capacity_steps=4)
    expected: list[list[list[int]]] = [[], [], []]
    for step, ended in enumerate(ends):
        actions[:] = np.arange(6).reshape(3, 2) + 10 * step
        log.append(actions)
        for env in range(3):
            expected[env].append(actions[env].tolist())
            if ended[env]:
                log.start_episode(env)
                expected[env] = []

    for env in range(3):
        assert log.of(env).tolist() == expected[env]
        assert log.length_of(env) == len(expected[env])
    rebuilt = ActionLog.of_episodes(actions, [log.of(env) for env in range(3)])
    rebuilt.append(actions)
    assert all(rebuilt.of(env).tolist() == [*expected[env], actions[env].tolist()] for env in range(3))


def test_k30_memory_is_bounded_by_the_longest_running_episode() -> None:
    actions = np.zeros(1, np.int32)
    log = ActionLog(actions, capacity_steps=8)
    for step in range(10_000):
        log.append(actions)
        if step % 5 == 0:
            log.start_episode(0)
    assert len(log._steps) <= 16
