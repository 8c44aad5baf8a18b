"""From a name to a batch of environments: ``gym:CartPole-v1``, ``mettagrid:navigation``, ``module:factory``.

A factory is a small picklable value. It travels to worker processes (on this and other machines) and builds
the environments there, so nothing but the named module must be importable on the other side.

``gym:ID``
    ``gymnasium.make(ID, **kwargs)``, without the wrappers that only check for misuse; a time limit stays.
``mettagrid:MISSION``
    A MettaGrid curriculum: one task (navigation, arena, tmaze, sequence, object_use, smoke), the 64 buckets of
    navigation (bucketed), or any path or YAML file of a curriculum; kwargs are fields of ``TaskSpec``, for every
    task of it. Before the name of a YAML file ``mettagrid:`` may be left out.
``MODULE:FACTORY``
    A callable in a module of the user's own (a dotted path, found as ``import`` finds it; not the running
    script itself). A callable with parameters ``num_envs``, ``first_env`` and ``arrays`` (a function, or a
    subclass of ``EnvBatch``) is called once per batch with these and the kwargs and returns an ``EnvBatch``;
    ``arrays`` None means that it allocates them. Any other callable is called once per environment with the
    kwargs and returns a ``gymnasium.Env`` (a subclass of ``gymnasium.Env`` is such a callable). A class with a
    method ``task_table`` is a curriculum of MettaGrid tasks.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.typed_config import did_you_mean, nearest_and_all
from metta_ray.envs.env_batch import BatchArrays, EnvBatch
from metta_ray.envs.env_spec import EnvSpec
from metta_ray.envs.gymnasium_env import GymnasiumBatch, gymnasium_spec
from metta_ray.envs.tasks import Curriculum, TaskTable

# What `mettagrid:` is usually followed by → the curriculum's path. Any other path of a curriculum works too.
MISSIONS = {
    "navigation": "navigation",
    "bucketed": "curriculum/navigation/bucketed",
    "arena": "arena",
    "tmaze": "memory/tmaze",
    "sequence": "navigation_sequence",
    "object_use": "object_use",
    "smoke": "smoke",
}


CURRICULUM_FILES = (".yaml", ".yml")


@dataclass(frozen=True)
class EnvFactory(ABC):
    """Builds batches of one environment.

    name: what the user asked for. kwargs: for the environment's constructor.
    """

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    @abstractmethod
    def spec(self) -> EnvSpec:
        """Description without keeping an environment. ConfigError where it cannot be built or used."""

    @abstractmethod
    def build(self, num_envs: int, first_env: int = 0, arrays: BatchArrays | None = None) -> EnvBatch:
        """Environments ``first_env …`` bound to ``arrays``, or to arrays of their own."""

    def curriculum(self) -> Curriculum | None:
        """A fresh curriculum for environments with tasks, else None."""
        return None

    @abstractmethod
    def check(self) -> None:
        """ConfigError if name or kwargs cannot work, as far as can be told without building anything."""

    def as_evaluated(self) -> EnvFactory:
        """The same without what only training wants (staggered first episodes)."""
        return self


@dataclass(frozen=True)
class GymnasiumFactory(EnvFactory):
    """``registration`` travels along, so that a worker need not import what registered the id."""

    registration: Any = None

    def spec(self) -> EnvSpec:
        return _spec_of_one(self._make, self.name)

    def build(self, num_envs: int, first_env: int = 0, arrays: BatchArrays | None = None) -> EnvBatch:
        return GymnasiumBatch(self._make, name=self.name, num_envs=num_envs, first_env=first_env, arrays=arrays)

    def check(self) -> None:
        """The registration was found when the factory was made; gymnasium checks the rest."""

    def _make(self) -> gymnasium.Env[Any, Any]:
        registration = copy.copy(self.registration)
        registration.order_enforce = False  # the batch calls reset before step itself
        with _construction_of(self.name):
            return gymnasium.make(registration, disable_env_checker=True, **self.kwargs)


@dataclass(frozen=True)
class CallableFactory(EnvFactory):
    """``MODULE:FACTORY``, see the module's docstring. Imported where it is used."""

    def spec(self) -> EnvSpec:
        if not self._builds_batches():
            return _spec_of_one(self._make, self.name)
        batch = self.build(num_envs=1)
        try:
            return batch.spec
        finally:
            batch.close()

    def build(self, num_envs: int, first_env: int = 0, arrays: BatchArrays | None = None) -> EnvBatch:
        if not self._builds_batches():
            return GymnasiumBatch(self._make, name=self.name, num_envs=num_envs, first_env=first_env, arrays=arrays)
        factory = self._callable()
        with _construction_of(self.name):
            batch = factory(num_envs=num_envs, first_env=first_env, arrays=arrays, **self.kwargs)
        if not isinstance(batch, EnvBatch):
            raise ConfigError(
                f"{self.name} returned {type(batch).__name__}; a callable that takes num_envs, first_env and "
                f"arrays must return a metta_ray.envs.env_batch.EnvBatch"
            )
        return batch

    def check(self) -> None:
        self._callable()

    def is_curriculum(self) -> bool:
        found = self._callable()
        return isinstance(found, type) and hasattr(found, "task_table")

    def _make(self) -> gymnasium.Env[Any, Any]:
        factory = self._callable()
        with _construction_of(self.name):
            env = factory(**self.kwargs)
        if not isinstance(env, gymnasium.Env):
            raise ConfigError(
                f"{self.name} returned {type(env).__name__}; it must return a gymnasium.Env, or take "
                f"num_envs, first_env and arrays and return an EnvBatch"
            )
        return env

    def _builds_batches(self) -> bool:
        try:
            parameters = inspect.signature(self._callable()).parameters
        except (TypeError, ValueError):  # some callables written in C have no signature
            return False
        return {"num_envs", "first_env", "arrays"} <= set(parameters)

    def _callable(self) -> Callable[..., Any]:
        module_name, _, path = self.name.partition(":")
        if module_name == "__main__":
            raise ConfigError(f"{self.name}: other processes cannot import the running script; use a module of its own")
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"environment {self.name!r}: no module named {error.name!r}"
                f"{did_you_mean(self.name, known_environments())}"
            ) from error
        for attribute in path.split("."):
            if not hasattr(found, attribute):
                raise ConfigError(
                    f"environment {self.name!r}: {module_name} has no {path!r}{did_you_mean(path, _public(found))}"
                )
            found = getattr(found, attribute)
        if not callable(found):
            raise ConfigError(f"environment {self.name!r}: {path} is a {type(found).__name__}, not a callable")
        return found  # type: ignore[no-any-return]


@dataclass(frozen=True)
class MettaGridFactory(EnvFactory):
    """MettaGrid tasks drawn from a table.

    table: what the environments draw from until a vecenv sends another; None: that of ``curriculum()``.
    stagger: first episodes end early at random steps, so that environments do not march in step.
    """

    table: TaskTable | None = None
    stagger: bool = True

    def spec(self) -> EnvSpec:
        return _mettagrid("mettagrid_env").mettagrid_spec(self._table())  # type: ignore[no-any-return]

    def build(self, num_envs: int, first_env: int = 0, arrays: BatchArrays | None = None) -> EnvBatch:
        return _mettagrid("mettagrid_env").MettaGridBatch(  # type: ignore[no-any-return]
            self._table(), num_envs=num_envs, first_env=first_env, arrays=arrays, stagger=self.stagger
        )

    def curriculum(self) -> Curriculum:
        mission = self.name.removeprefix("mettagrid:")
        path = MISSIONS.get(mission, mission)
        library = _mettagrid("curriculum.resolve")
        return library.resolve_curriculum(path, **self.kwargs)  # type: ignore[no-any-return]

    def check(self) -> None:
        mission = self.name.removeprefix("mettagrid:")
        names_a_curriculum = "/" in mission or ":" in mission or mission.endswith(CURRICULUM_FILES)
        if mission not in MISSIONS and not names_a_curriculum:
            known = [f"mettagrid:{known}" for known in MISSIONS]
            raise ConfigError(f"environment {self.name!r} is unknown{nearest_and_all(self.name, known)}")
        self.curriculum()

    def as_evaluated(self) -> EnvFactory:
        return replace(self, stagger=False)

    def _table(self) -> TaskTable:
        return self.table if self.table is not None else self.curriculum().task_table()


def resolve_env(name: str, **kwargs: Any) -> EnvFactory:
    """The factory for a name, see the module's docstring. ConfigError with the nearest known one."""
    if name.endswith(CURRICULUM_FILES) and not name.startswith("mettagrid:"):
        name = f"mettagrid:{name}"
    scheme, colon, rest = name.partition(":")
    if not colon or not rest:
        raise ConfigError(
            f"environment {name!r} has not the form gym:ID, mettagrid:MISSION or module:factory"
            f"{nearest_and_all(name, known_environments())}"
        )
    if scheme == "gym":
        return GymnasiumFactory(name, kwargs, registration=_find_registration(name, rest))
    factory = MettaGridFactory(name, kwargs) if scheme == "mettagrid" else CallableFactory(name, kwargs)
    factory.check()
    if isinstance(factory, CallableFactory) and factory.is_curriculum():
        factory = MettaGridFactory(f"mettagrid:{name}", kwargs)
        factory.check()
    return factory


def known_environments() -> list[str]:
    """Names that always work, for messages; ``gym:`` stands for every registered id."""
    return ["gym:CartPole-v1", *(f"mettagrid:{mission}" for mission in MISSIONS)]


def _find_registration(name: str, env_id: str) -> Any:
    """Gymnasium's registration of an id, which may be ``module:id`` as for ``gymnasium.make``."""
    module, colon, bare_id = env_id.rpartition(":")
    try:
        if colon:
            importlib.import_module(module)
        return gymnasium.spec(bare_id)
    except ModuleNotFoundError as error:
        raise ConfigError(f"environment {name!r}: no module named {error.name!r}; install it or correct it") from error
    except gymnasium.error.Error as error:
        raise ConfigError(
            f"environment {name!r}: {error} If a module registers the id, name it too: gym:MODULE:{bare_id}"
        ) from error


def _spec_of_one(make: Callable[[], gymnasium.Env[Any, Any]], name: str) -> EnvSpec:
    env = make()
    try:
        return gymnasium_spec(env, name)
    finally:
        env.close()


@contextmanager
def _construction_of(name: str) -> Iterator[None]:
    """Whatever the user's constructor raises, as a ConfigError that names the environment."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"environment {name!r} could not be made: {type(error).__name__}: {error}") from error


def _mettagrid(module: str) -> Any:
    """A module of the layer above, loaded only when a MettaGrid environment is asked for."""
    return importlib.import_module(f"metta_ray.mettagrid.{module}")


def _public(module: Any) -> list[str]:
    return [name for name in dir(module) if not name.startswith("_")]
