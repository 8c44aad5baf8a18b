"""Real worker processes: equality with serial, groups, faults that name their cause, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from metta_ray.common.errors import CheckpointError, ConfigError, EnvironmentFault, UsageError
from metta_ray.envs.multiprocess_vecenv import MultiprocessVecEnv, check_sizes
from metta_ray.envs.registry import resolve_env
from metta_ray.envs.serial_vecenv import SerialVecEnv

CARTPOLE = resolve_env("gym:CartPole-v1")

USER_MODULE = '''
import os, sys, time
import gymnasium, numpy as np

class Moody(gymnasium.Env):
    """Observes (its process, steps). Action 1 sleeps, 2 raises, 3 leaves the process."""
    observation_space = gymnasium.spaces.Box(0, 2**31 - 1, (2,), np.int64)
    action_space = gymnasium.spaces.Discrete(4)
    def __init__(self, nap_s=0.05, in_init=None):
        self.nap_s = nap_s
        assert in_init is None, in_init
    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self.observe(), {}
    def observe(self):
        return np.array([os.getpid(), self.steps])
    def step(self, action):
        self.steps += 1
        if action == 1:
            time.sleep(self.nap_s)
        elif action == 2:
            raise LookupError("the map has no exit")
        elif action == 3:
            os._exit(17)
        return self.observe(), float(action), False, False, {"torch": "torch" in sys.modules,
            "threads": int(os.environ["OMP_NUM_THREADS"])}

class Short(Moody):
    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        return observation, reward, True, False, info
'''


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "moody_env.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("moody_env", None)
    return "moody_env"


@pytest.fixture(scope="module")
def shared_groups() -> Iterator[MultiprocessVecEnv]:
    with MultiprocessVecEnv(CARTPOLE, 4, batch_size=2, num_workers=2) as vecenv:
        yield vecenv


@pytest.fixture
def cartpole_groups(shared_groups: MultiprocessVecEnv) -> MultiprocessVecEnv:
    """Two groups of two, newly started; tests share the processes and must not close them."""
    shared_groups.async_reset(3)
    return shared_groups


def moody(user_module: str, num_envs: int = 2, **kwargs: Any) -> MultiprocessVecEnv:
    vecenv = MultiprocessVecEnv(resolve_env(f"{user_module}:Moody", nap_s=30.0), num_envs, num_workers=2, **kwargs)
    vecenv.async_reset(0)
    return vecenv


def has_ended(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


# Equality and groups


def test_serial_and_multiprocess_give_identical_trajectories() -> None:
    rng = np.random.default_rng(0)
    with MultiprocessVecEnv(CARTPOLE, 4, num_workers=2) as parallel, SerialVecEnv(CARTPOLE, 4) as serial:
        parallel.async_reset(5)
        serial.async_reset(5)
        ended = 0
        for _ in range(150):
            ours, theirs = parallel.recv(), serial.recv()
            for name in ("obs", "rewards", "terminals", "truncations", "env_ids", "masks"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
            assert ours.infos == theirs.infos
            np.testing.assert_array_equal(parallel.final_obs[ours.terminals], serial.final_obs[theirs.terminals])
            ended += len(ours.infos)
            actions = rng.integers(0, 2, 4)
            parallel.send(actions)
            serial.send(actions)
        assert ended > 10


def test_groups_come_in_turn_with_their_own_rows(cartpole_groups: MultiprocessVecEnv) -> None:
    firsts = []
    for _ in range(6):
        firsts.append(cartpole_groups.recv().env_ids.tolist())
        cartpole_groups.send(np.zeros(2, np.int64))
    assert firsts == [[0, 1], [2, 3]] * 3


def test_two_groups_together_give_the_rows_of_one_serial_vecenv(cartpole_groups: MultiprocessVecEnv) -> None:
    serial = SerialVecEnv(CARTPOLE, 4)
    serial.async_reset(3)
    rng = np.random.default_rng(0)
    for _ in range(60):
        actions = rng.integers(0, 2, 4)
        expected = serial.recv()
        for group in range(2):
            received = cartpole_groups.recv()
            np.testing.assert_array_equal(received.obs, expected.obs[received.env_ids])
            cartpole_groups.send(actions[2 * group : 2 * group + 2])
        serial.send(actions)


def test_recv_twice_is_a_usage_error_and_hold_sets_a_group_aside(cartpole_groups: MultiprocessVecEnv) -> None:
    first = cartpole_groups.recv()
    with pytest.raises(UsageError, match=r"recv after recv"):
        cartpole_groups.recv()
    cartpole_groups.hold()
    second = cartpole_groups.recv()
    assert second.env_ids.tolist() == [2, 3]
    cartpole_groups.send(np.zeros(2, np.int64))
    assert cartpole_groups.recv().env_ids.tolist() == [2, 3]  # the held group is passed over
    cartpole_groups.hold()
    again = cartpole_groups.recv()  # all are held: in the order of holding
    assert again.env_ids.tolist() == [0, 1]
    np.testing.assert_array_equal(again.obs, first.obs)
    cartpole_groups.send(np.zeros(2, np.int64))
    assert cartpole_groups.recv().env_ids.tolist() == [2, 3]


def test_k26_no_row_mixes_two_streams_when_groups_advance_unevenly(user_module: str) -> None:
    """In first-come order each row's step counter must count exactly the actions sent to that row."""
    factory = resolve_env(f"{user_module}:Moody", nap_s=0.003)
    with MultiprocessVecEnv(factory, 4, batch_size=2, num_workers=2, in_fixed_order=False) as vecenv:
        vecenv.async_reset(0)
        sent = np.zeros(4, np.int64)
        owner: dict[int, int] = {}
        for _ in range(200):
            received = vecenv.recv()
            np.testing.assert_array_equal(received.obs[:, 1], sent[received.env_ids])
            for row, pid in zip(received.env_ids, received.obs[:, 0], strict=True):
                assert owner.setdefault(int(row), int(pid)) == pid
            is_slow_group = received.env_ids[0] == 0
            vecenv.send(np.full(2, int(is_slow_group)))
            sent[received.env_ids] += 1
        assert len(set(owner.values())) == 2
        assert sent[2] > 2 * sent[0]  # the fast group was not made to wait for the slow one


def test_fixed_order_waits_for_the_slow_group(user_module: str) -> None:
    factory = resolve_env(f"{user_module}:Moody", nap_s=0.05)
    with MultiprocessVecEnv(factory, 2, batch_size=1, num_workers=2) as vecenv:
        vecenv.async_reset(0)
        order = []
        for _ in range(6):
            order.append(int(vecenv.recv().env_ids[0]))
            vecenv.send(np.array([1 - order[-1]]))
        assert order == [0, 1] * 3


def test_k31_zero_copy_arrays_alias_the_shared_memory_and_copies_do_not(
    cartpole_groups: MultiprocessVecEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    for zero_copy in (True, False):
        monkeypatch.setattr(cartpole_groups, "_zero_copy", zero_copy)
        cartpole_groups.async_reset(0)
        first = cartpole_groups.recv()
        before = first.obs.copy()
        cartpole_groups.send(np.ones(2, np.int64))
        cartpole_groups.recv()
        cartpole_groups.hold()
        assert cartpole_groups.recv().env_ids[0] == 0
        assert np.array_equal(first.obs, before) == (not zero_copy)
        assert np.shares_memory(first.obs, cartpole_groups._views[0].obs) == zero_copy


def test_workers_run_one_thread_and_load_no_torch(user_module: str) -> None:
    factory = resolve_env(f"{user_module}:Short")
    with MultiprocessVecEnv(factory, 2, num_workers=2) as vecenv:
        vecenv.async_reset(0)
        vecenv.recv()
        vecenv.send(np.zeros(2, np.int64))
        assert [info["info"] for info in vecenv.recv().infos] == [{"torch": 0.0, "threads": 1.0}] * 2


# Snapshot and restore


def test_restored_workers_continue_exactly_mid_episode(cartpole_groups: MultiprocessVecEnv) -> None:
    def play(vecenv: MultiprocessVecEnv, steps: int, seed: int) -> list[Any]:
        rng = np.random.default_rng(seed)
        received = []
        for _ in range(steps):
            batch = vecenv.recv()
            received.append((batch.env_ids, batch.infos, batch.obs.copy(), batch.terminals.copy()))
            vecenv.send(rng.integers(0, 2, 2))
        return received

    play(cartpole_groups, 101, seed=0)
    state = cartpole_groups.snapshot()
    expected = play(cartpole_groups, 120, seed=1)
    with MultiprocessVecEnv(CARTPOLE, 4, batch_size=2, num_workers=2) as restored:
        restored.restore(state)
        for got, wanted in zip(play(restored, 120, seed=1), expected, strict=True):
            assert got[1] == wanted[1]
            for index in (0, 2, 3):
                np.testing.assert_array_equal(got[index], wanted[index])
        with pytest.raises(CheckpointError, match=r"saved by 1 worker processes, restored into 2"):
            restored.restore({**state, "batches": state["batches"][:1]})


def test_state_of_workers_is_refused_by_serial_with_the_remedy(cartpole_groups: MultiprocessVecEnv) -> None:
    state = {**cartpole_groups.snapshot(), "num_groups": 1}
    with pytest.raises(CheckpointError, match=r"saved by 2 workers.*'multiprocessing' and num_workers=2"):
        SerialVecEnv(CARTPOLE, 4).restore(state)


# Faults


def test_killed_worker_is_named_with_pid_signal_and_environments(user_module: str) -> None:
    vecenv = moody(user_module, num_envs=4)
    victim = vecenv.worker_pids[1]
    vecenv.recv()
    os.kill(victim, signal.SIGKILL)
    vecenv.send(np.zeros(4, np.int64))
    with pytest.raises(
        EnvironmentFault, match=rf"worker 1 \(pid {victim}, environments 2 to 3\) was killed by SIGKILL"
    ):
        vecenv.recv()
    assert all(has_ended(pid) for pid in vecenv.worker_pids)
    with pytest.raises(UsageError, match=r"closed because it failed: environment worker 1"):
        vecenv.recv()


def test_worker_that_leaves_is_named_with_its_exit_code(user_module: str) -> None:
    vecenv = moody(user_module)
    vecenv.recv()
    vecenv.send(np.array([3, 0]))
    with pytest.raises(EnvironmentFault, match=r"environment worker 0 .*ended with exit code 17"):
        vecenv.recv()


def test_hung_worker_is_named_with_its_stack_after_the_deadline_and_close_does_not_hang(
    user_module: str,
) -> None:
    vecenv = moody(user_module, step_timeout_s=0.3)
    vecenv.recv()
    vecenv.send(np.array([0, 1]))
    start = time.monotonic()
    with pytest.raises(EnvironmentFault, match=r"worker 1 .*did not answer within 0.3 s \(step_timeout_s\)") as error:
        vecenv.recv()
    assert 'moody_env.py", line' in str(error.value)
    assert "in step" in str(error.value)
    assert time.monotonic() - start < 5
    assert all(has_ended(pid) for pid in vecenv.worker_pids)


def test_python_exception_of_a_worker_surfaces_with_its_traceback(user_module: str) -> None:
    vecenv = moody(user_module)
    vecenv.recv()
    vecenv.send(np.array([0, 2]))
    with pytest.raises(EnvironmentFault, match=r"worker 1 .*environment 1 .*LookupError: the map has no exit") as error:
        vecenv.recv()
    assert 'raise LookupError("the map has no exit")' in str(error.value)


def test_environment_that_cannot_be_built_in_a_worker_is_a_config_error(
    user_module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the parent can build it, workers cannot
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (Path(sys.path[0]) / "picky_env.py").write_text(
        "import os\nfrom moody_env import Moody\n"
        "def make():\n    assert os.environ['OMP_NUM_THREADS'] != '1', 'not here'\n    return Moody()\n"
    )
    with pytest.raises(ConfigError, match=r"worker \d .*picky_env:make.*could not be made: AssertionError: not here"):
        MultiprocessVecEnv(resolve_env("picky_env:make"), 2, num_workers=2)


def test_close_in_the_middle_of_a_step_ends_all_workers_and_may_be_repeated(user_module: str) -> None:
    vecenv = moody(user_module)
    pids = vecenv.worker_pids
    vecenv.recv()
    vecenv.send(np.array([0, 1]))
    start = time.monotonic()
    vecenv.close()
    vecenv.close()
    assert time.monotonic() - start < 4
    assert all(has_ended(pid) for pid in pids)


def test_orphan_workers_end_when_the_parent_is_killed_even_inside_a_step(user_module: str) -> None:
    script = (
        "import numpy as np, time\n"  # no __main__ guard: workers do not run the script again
        "from metta_ray.envs.registry import resolve_env\n"
        "from metta_ray.envs.multiprocess_vecenv import MultiprocessVecEnv\n"
        f"vecenv = MultiprocessVecEnv(resolve_env('{user_module}:Moody', nap_s=600.0), 2, num_workers=2)\n"
        "vecenv.async_reset(0); vecenv.recv(); vecenv.send(np.array([0, 1]))\n"
        "print(*vecenv.worker_pids, flush=True); time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    assert [has_ended(pid) for pid in pids] == [True, True]
    parent.stdout.close()


def test_what_only_the_running_script_knows_is_refused(user_module: str) -> None:
    factory = resolve_env(f"{user_module}:Moody", nap_s=lambda: 1)
    with pytest.raises(ConfigError, match=r"not everything can be sent to worker processes"):
        MultiprocessVecEnv(factory, 2, num_workers=2)


# Sizes


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((7, 7, 2), "num_envs=7 is not a multiple of num_workers=2; nearest: 6 or 8"),
        ((12, 5, 2), "num_envs=12 is not a multiple of batch_size=5.*nearest batch_size: 4 or 6"),
        (
            (12, 4, 2),
            "batch_size=4 is not a multiple of the 6 environments per worker.*nearest batch_size: 6",
        ),
        ((0, 1, 1), "num_envs=0"),
        ((4, 0, 2), "batch_size=0"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_the_nearest(sizes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_sizes(*sizes)
