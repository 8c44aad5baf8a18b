"""Names of environments: what they resolve to, and what is said about wrong ones."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from metta_ray.common.errors import ConfigError
from metta_ray.envs.gymnasium_env import GymnasiumBatch
from metta_ray.envs.registry import resolve_env
from metta_ray.envs.serial_vecenv import SerialVecEnv

USER_MODULE = """
import gymnasium, numpy as np
from metta_ray.envs.env_batch import BatchArrays
from metta_ray.envs.gymnasium_env import GymnasiumBatch

class Corridor(gymnasium.Env):
    action_space = gymnasium.spaces.Discrete(2)
    def __init__(self, length=3):
        self.observation_space = gymnasium.spaces.Box(0, length, (1,), np.float32)
        self.length = length
    def reset(self, *, seed=None, options=None):
        self.place = 0
        return np.array([0.0], np.float32), {}
    def step(self, action):
        self.place += int(action)
        return np.array([self.place], np.float32), 1.0, self.place >= self.length, False, {}

def make(length=3):
    return Corridor(length)

def make_batch(*, num_envs, first_env, arrays, length=3):
    make = lambda: Corridor(length)
    return GymnasiumBatch(make, name="batch", num_envs=num_envs, first_env=first_env, arrays=arrays)

class OwnBatch(GymnasiumBatch):
    def __init__(self, num_envs, first_env, arrays):
        super().__init__(Corridor, name="own", num_envs=num_envs, first_env=first_env, arrays=arrays)

def wrong():
    return 7

def broken(length):
    raise OSError("no simulator licence")

number = 3
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "user_corridor.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("user_corridor", None)
    return "user_corridor"


def test_gym_name_builds_environments_without_checking_wrappers_but_with_the_time_limit() -> None:
    factory = resolve_env("gym:CartPole-v1", max_episode_steps=7)
    batch = factory.build(2)
    assert isinstance(batch, GymnasiumBatch)
    env = batch._envs[0]
    assert type(env) is gymnasium.wrappers.TimeLimit
    assert type(env.env) is type(env.unwrapped)
    assert (factory.spec().name, factory.spec().agents_per_env) == ("gym:CartPole-v1", 1)


def test_gym_name_with_module_registers_the_id_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_suite.py").write_text(
        "import gymnasium\ngymnasium.register('MySuite-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_env("gym:my_suite:MySuite-v0").spec().obs_shape == (4,)


@pytest.mark.parametrize("factory", ["Corridor", "make", "make_batch"])
def test_callable_of_a_users_module_gives_environments_or_a_batch(user_module: str, factory: str) -> None:
    resolved = pickle.loads(pickle.dumps(resolve_env(f"{user_module}:{factory}", length=5)))
    assert resolved.spec().observation_space.high.item() == 5
    assert resolved.build(3).num_agents == 3
    with SerialVecEnv(resolved, 2) as vecenv:
        vecenv.async_reset(0)
        assert vecenv.recv().obs.shape == (2, 1)


def test_subclass_of_env_batch_is_a_factory_of_batches(user_module: str) -> None:
    assert type(resolve_env(f"{user_module}:OwnBatch").build(2)).__name__ == "OwnBatch"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CartPole-v1", r"'CartPole-v1' has not the form.*did you mean 'gym:CartPole-v1'"),
        ("gym:CartPol-v1", r"CartPole"),
        ("gym:no_such_module:X-v0", r"no module named 'no_such_module'"),
        (
            "mettagrid:navigatoin",
            r"'mettagrid:navigatoin' is unknown; did you mean 'mettagrid:navigation'.*mettagrid:smoke",
        ),
        ("no_such_module:make", r"no module named 'no_such_module'"),
        ("__main__:make", r"cannot import the running script"),
    ],
)
def test_unknown_name_is_refused_with_what_is_known(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_env(name)


def test_wrong_callables_are_refused_by_name(user_module: str) -> None:
    with pytest.raises(ConfigError, match=r"has no 'mak'; did you mean 'make'"):
        resolve_env(f"{user_module}:mak")
    with pytest.raises(ConfigError, match=r"number is a int, not a callable"):
        resolve_env(f"{user_module}:number")
    with pytest.raises(ConfigError, match=r"wrong returned int; it must return a gymnasium.Env"):
        resolve_env(f"{user_module}:wrong").spec()
    with pytest.raises(ConfigError, match=r"could not be made: OSError: no simulator licence"):
        resolve_env(f"{user_module}:broken", length=1).build(1)
    with pytest.raises(ConfigError, match=r"could not be made: TypeError.*nonsense"):
        resolve_env("gym:CartPole-v1", nonsense=1).build(1)


def test_mettagrid_settings_are_checked_when_the_name_is_resolved() -> None:
    factory = resolve_env("mettagrid:smoke", max_steps=9)
    assert factory.curriculum() is not None
    assert factory.spec().agents_per_env == 1
    with pytest.raises(ConfigError, match=r"max_stepz.*did you mean 'max_steps'"):
        resolve_env("mettagrid:smoke", max_stepz=9)


def test_gymnasium_environments_load_neither_torch_nor_the_engine() -> None:
    script: Any = (
        "import sys\n"
        "from metta_ray.envs.registry import resolve_env\n"
        "from metta_ray.envs.multiprocess_vecenv import MultiprocessVecEnv\n"
        "resolve_env('gym:CartPole-v1').build(1)\n"
        "print(sorted({'torch', 'mettagrid', 'ray'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
