"""One training as the service runs it: a preset, changed by a YAML file, changed by dotted words of the command line.

    load_run_config("deploy/runs/navigation.yaml", {"trainer.ppo.clip_coef": "0.1", "workers": "2:16"})

Loads neither torch nor an engine nor ray. In the service ``trainer.batch_size`` and ``minibatch_size`` count the agent
steps of all learner replicas together, ``trainer.num_workers`` the environment processes of one rollout worker.
What depends on the environment's number of agents is checked by ``sizes.resolved_sizes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import yaml
from pydantic import Field, model_validator

from metta_ray.common.errors import ConfigError
from metta_ray.common.util import places
from metta_ray.common.util.mirror import working_directory
from metta_ray.common.util.typed_config import StrictModel, apply_overrides, validated
from metta_ray.control.failure import NOBODYS_FAULT, Budget, Cause
from metta_ray.rl.presets import DEFAULT_PRESET, PRESETS, environment_settings, preset_for, preset_settings
from metta_ray.rl.run_directories import check_run_name
from metta_ray.rl.trainer_config import TrainerConfig
from metta_ray.state.open_store import check_store_url

# ``--seed 3`` for ``--trainer.seed 3``. Not num_workers: here it could mean two things.
SHORT_OPTIONS = {name: f"trainer.{name}" for name in ("total_timesteps", "seed", "env_overrides")} | {
    "run_name": "run",
    "address": "cluster.address",
    "state_url": "state.url",
}

STATE_VARIABLE = "METTA_RAY_STATE"
"""The store of runs of those that name none."""

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the entry command of a job."""
WORKING_DIRECTORIES = "working_dir_files"
"""Where Ray unpacks the working directories of jobs."""

_Count = Annotated[int, Field(ge=0)]
_PositiveInt = Annotated[int, Field(gt=0)]
_Amount = Annotated[float, Field(ge=0)]
_Seconds = Annotated[float, Field(gt=0)]
_Device = Annotated[str, Field(pattern=r"^(cpu|cuda)$")]


class RolloutConfig(StrictModel):
    """The rollout workers: how many, and what each of them is."""

    num_workers: _Count = Field(
        default=0,
        description="rollout workers at the start; more collect faster until the learner is the limit; "
        "0: as many as the cores and this machine's measured speed make worth it",
    )
    min_workers: _PositiveInt | None = Field(
        default=None, description="with max_workers: the number follows the learner's waiting; fewer cost less"
    )
    max_workers: _PositiveInt | None = Field(
        default=None, description="upper bound of the automatic number; above the useful number they would idle"
    )
    num_envs: _Count = Field(
        default=0,
        description="environments per worker; more make inference efficient and fragments large; 0: chosen with the "
        "number of workers, else as many as give fragments of about 4,096 agent steps, two per batch and replica",
    )
    fragment_steps: _Count = Field(
        default=0,
        description="agent steps per fragment; small ones arrive evenly, large ones cost less per step; "
        "0: num_envs × agents per environment × bptt_horizon",
    )
    threads: _PositiveInt = Field(
        default=1, description="torch threads of a worker; more help large networks only, and only on idle cores"
    )
    num_cpus: _Amount = Field(
        default=1.0, description="cores Ray reserves per worker; less packs more workers onto a node"
    )
    num_gpus: _Amount = Field(
        default=0.0, description="share of a GPU per worker; speeds inference up, takes memory from the learner"
    )
    resources: dict[str, float] = Field(
        default_factory=dict, description="Ray's custom resources per worker, e.g. to keep workers on spot nodes"
    )
    tickets_per_worker: _PositiveInt = Field(
        default=2, description="fragments ordered from a worker at a time; 2 hide the coordinator's answer time"
    )
    device: _Device = Field(default="cpu", description="where inference runs; cuda needs num_gpus above 0")

    @property
    def is_automatic(self) -> bool:
        """Whether the number of workers follows the load."""
        return self.min_workers is not None

    @property
    def initial_workers(self) -> int:
        """``num_workers`` within the bounds."""
        return min(max(self.num_workers, self.min_workers or 1), self.max_workers or max(1, self.num_workers))

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        low, high = self.min_workers, self.max_workers
        if (low is None) != (high is None):
            raise ValueError(
                f"min_workers={low} with max_workers={high}: set both (the number follows the load) or neither (fixed)"
            )
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_workers={low} is above max_workers={high}; swap them")
        return self

    @model_validator(mode="after")
    def _has_its_gpu(self) -> Self:
        _check_gpu(self.device, self.num_gpus, "a share such as 0.25")
        return self


class LearnerConfig(StrictModel):
    """The learner replicas, one torch DDP group in one placement group."""

    replicas: _Count = Field(
        default=0,
        description="processes that share each minibatch; pays when a gradient takes longer than its sum; "
        "0: chosen with the number of workers, else 1",
    )
    num_cpus: _Amount = Field(default=1.0, description="cores Ray reserves per replica; training waits if none is free")
    num_gpus: _Amount = Field(default=0.0, description="GPUs per replica; whole ones, as NCCL needs one per replica")
    threads: _PositiveInt = Field(
        default=1,
        description="torch threads of a replica; more speed training up on cores that workers leave idle; chosen with "
        "the number of workers unless it is set",
    )
    device: _Device = Field(default="cpu", description="where gradients are computed; cuda needs num_gpus above 0")
    process_group_timeout_s: _Seconds = Field(
        default=30.0, description="a replica silent for so long is lost; short finds hangs, long forgives slow steps"
    )
    first_process_group_timeout_s: _Seconds = Field(
        default=300.0, description="the same until the first update is done, when files and kernels are still cold"
    )

    @model_validator(mode="after")
    def _has_its_gpu(self) -> Self:
        _check_gpu(self.device, self.num_gpus, "1")
        return self


class EvaluatorConfig(StrictModel):
    """Where finished policies are played: actors that exist while there is something to play."""

    max_evaluators: _PositiveInt = Field(
        default=1, description="evaluations at a time; more keep up with short intervals, each takes a core"
    )
    deadline_s: _Seconds = Field(
        default=900.0,
        description="time for one evaluation: episodes that do not end within a third of it are cut off, one that "
        "takes longer counts as hung and is tried again; short finds hangs, long suits large suites",
    )
    idle_s: _Amount = Field(
        default=30.0, description="an idle evaluator ends after this; long spares starts, short frees its memory"
    )

    num_cpus: _Amount = Field(
        default=0.0, description="cores Ray reserves; 0 plays on whatever is idle, 1 waits for a core of its own"
    )
    resources: dict[str, float] = Field(
        default_factory=dict, description="Ray's custom resources, e.g. to keep evaluations on nodes of their own"
    )


class PacingConfig(StrictModel):
    """How far collecting may run ahead of training."""

    target_staleness: _Count = Field(
        default=1,
        description="batches collected ahead; 0 waits for each update (repeatable), more keeps all busy; a run whose "
        "processes share their cores and that chooses its workers takes 0 where that is faster, unless it is set",
    )
    max_staleness: _Count = Field(
        default=4, description="older fragments are dropped; low keeps data fresh, high wastes less after a stall"
    )
    byte_budget: _Count = Field(
        default=0, description="bytes of fragments in the object store; 0: 30 % of it, so nothing spills to disk"
    )

    @model_validator(mode="after")
    def _bound_is_above_target(self) -> Self:
        if self.max_staleness < self.target_staleness:
            raise ValueError(
                f"max_staleness={self.max_staleness} is below target_staleness={self.target_staleness}, so ordinary "
                f"fragments would be dropped; nearest: max_staleness={self.target_staleness}"
            )
        return self


class BudgetConfig(StrictModel):
    """How many failures of one cause within ``failure.window_s`` are replaced. None: any number."""

    per_slot: _PositiveInt | None = Field(
        default=None, description="more, and the slot stays empty; few stop a place that always fails"
    )
    per_run: _PositiveInt | None = Field(
        default=None, description="more, and the run fails; few show a bug early, many survive a rough night"
    )


class FailureConfig(StrictModel):
    """Deadlines, and what failures may cost. Preemptions and drains are never counted."""

    collect_deadline_s: _Seconds = Field(
        default=10.0, description="least time a fragment gets (or 5 × the usual); short finds hangs, long forgives load"
    )
    start_deadline_s: _Seconds = Field(
        default=120.0, description="time for a process to become ready once it is placed; engines load in seconds"
    )
    update_deadline_s: _Seconds = Field(
        default=30.0, description="least time an update gets (or 5 × the usual) before its replica counts as frozen"
    )
    lease_s: _Seconds = Field(
        default=900.0,
        description="workers and learners without a coordinator end after this; longer than Ray's retries",
    )
    heartbeat_s: _Seconds = Field(
        default=1.0, description="interval of life signs; short finds losses soon, long spares messages"
    )
    driver_timeout_s: _Seconds = Field(
        default=15.0, description="an attached driver silent for so long counts as gone, and the run is stopped cleanly"
    )
    upload_deadline_s: _Seconds = Field(
        default=120.0,
        description="time at a run's end for what is not yet in the object store of data_dir; it stays here anyway",
    )
    window_s: _Seconds = Field(
        default=300.0, description="failures older than this are forgotten; short tolerates more of them"
    )
    backoff_s: _Amount = Field(
        default=1.0, description="pause before a slot's second replacement, then doubled; the first comes at once"
    )
    max_backoff_s: _Amount = Field(default=60.0, description="longest such pause; long spares a sick node")
    crash: BudgetConfig = Field(default=BudgetConfig(per_slot=20, per_run=50), description="processes that died")
    out_of_memory: BudgetConfig = Field(
        default=BudgetConfig(per_slot=3, per_run=30), description="processes killed for memory; the next needs as much"
    )
    environment: BudgetConfig = Field(
        default=BudgetConfig(per_slot=3, per_run=30), description="environments that raised or returned NaN"
    )
    hang: BudgetConfig = Field(default=BudgetConfig(per_slot=5, per_run=50), description="missed deadlines")
    node_lost: BudgetConfig = Field(
        default=BudgetConfig(per_slot=10), description="processes lost with their node, many at once"
    )
    learner: BudgetConfig = Field(
        default=BudgetConfig(per_run=20), description="rebuilt learner groups; each repeats at most one update"
    )
    evaluator: BudgetConfig = Field(
        default=BudgetConfig(per_run=8),
        description="lost evaluators, whatever the cause; more, and training goes on without evaluations",
    )

    @model_validator(mode="before")
    @classmethod
    def _half_a_budget_keeps_the_other_default(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {
            name: defaults[name].model_dump() | value
            if isinstance(value, dict) and isinstance(defaults.get(name), BudgetConfig)
            else value
            for name, value in data.items()
        }

    def budget(self, cause: Cause) -> Budget:
        """The budget of a cause for ``control.failure.decide``."""
        if cause in NOBODYS_FAULT:
            return Budget(window_s=self.window_s, backoff_s=0.0)  # nobody is to blame
        return self._budget(getattr(self, cause.value))

    def evaluator_budget(self) -> Budget:
        """The budget for ``control.failure.decide_evaluator``."""
        return self._budget(self.evaluator)

    def _budget(self, limits: BudgetConfig) -> Budget:
        return Budget(limits.per_slot, limits.per_run, self.window_s, self.backoff_s, self.max_backoff_s)


class ClusterConfig(StrictModel):
    """Where it runs: an embedded Ray of its own, or a cluster that is named."""

    address: str | None = Field(
        default=None, description="cluster to join, host:port; none: a local Ray that ends with the run"
    )
    num_cpus: _PositiveInt | None = Field(
        default=None, description="cores the embedded Ray believes in; none: the machine's, but enough for the run"
    )
    object_store_memory: _PositiveInt | None = Field(
        default=None, description="bytes of the embedded Ray's store; none: Ray's share of the memory"
    )
    dashboard: bool = Field(default=True, description="Ray's dashboard on loopback; costs about 1 GB of memory")
    dashboard_port: _Count = Field(default=0, description="0: a free one, so that two runs do not collide")
    measure: bool = Field(
        default=True,
        description="measure this machine's speed at the run's work before it starts, seconds the first time; "
        "false: the usual layout, and no share of the floor is shown",
    )
    auth: Literal["token", "disabled"] = Field(
        default="token", description="who may reach the embedded Ray; disabled lets every local user run code in it"
    )


class StateConfig(StrictModel):
    """The store of facts about runs, which ``metta-ray status`` and ``runs`` read."""

    url: str | None = Field(
        default=None,
        description="sqlite:///PATH, or redis[s]://[USER@]HOST[:PORT][/DATABASE][?ca=FILE&password_file=FILE], which "
        "holds no password; none: $METTA_RAY_STATE, or runs.sqlite in data_dir, which needs a local disk",
    )
    timeout_s: _Seconds = Field(
        default=0.25,
        description="a call of Redis takes at most about this long; training never waits for one. More where the "
        "network is slower",
    )


class RunConfig(StrictModel):
    """All of one run."""

    preset: str = Field(default=DEFAULT_PRESET, description=f"settings to start from: {', '.join(PRESETS)}")
    run: str | None = Field(default=None, description="name; an existing run is continued. None: named by the time")
    new: bool = Field(default=False, description="set an existing run of that name aside and start afresh")
    detach: bool = Field(default=False, description="go on when the starting process ends; otherwise stop cleanly")
    data_dir: str | None = Field(
        default=None,
        description="where runs are kept, one place all nodes reach, or a URL such as s3://bucket/runs; "
        "None: $DATA_DIR or ./train_dir",
    )
    device: _Device = Field(
        default="cpu", description="device of workers and learners that name none of their own, and of evaluation"
    )
    agent: dict[str, Any] = Field(default_factory=dict, description="network: see AgentConfig")
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    learner: LearnerConfig = Field(default_factory=LearnerConfig)
    evaluator: EvaluatorConfig = Field(default_factory=EvaluatorConfig)
    pacing: PacingConfig = Field(default_factory=PacingConfig)
    failure: FailureConfig = Field(default_factory=FailureConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    state: StateConfig = Field(default_factory=StateConfig)
    evaluate: bool = Field(default=True, description="play evaluation episodes at the end; takes seconds to minutes")
    tensorboard: bool = Field(default=False, description="write TensorBoard event files beside metrics.jsonl")
    wandb: bool = Field(default=False, description="track with Weights & Biases, as WANDB_* variables say")

    def record(self) -> dict[str, Any]:
        """What is kept of a run's configuration: all but how this one start of it was asked for."""
        return self.model_dump(mode="json", exclude={"new", "detach"})

    @model_validator(mode="before")
    @classmethod
    def _device_of_the_sections(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "device" not in data:
            return data
        data = dict(data)
        for name in ("rollout", "learner"):
            section = data.get(name, {})
            if isinstance(section, dict):
                data[name] = {"device": data["device"]} | section
        return data

    @model_validator(mode="after")
    def _replicas_share_the_sizes(self) -> Self:
        trainer, replicas = self.trainer, max(1, self.learner.replicas)
        step = replicas * trainer.bptt_horizon
        for name in ("batch_size", "minibatch_size"):
            size = getattr(trainer, name)
            if size % step:
                raise ValueError(
                    f"trainer.{name}={size} cannot be shared by learner.replicas={replicas} in whole segments of "
                    f"bptt_horizon={trainer.bptt_horizon}; nearest: {nearest_multiples(size, step)}"
                )
        return self


def located(config: RunConfig, environ: Mapping[str, str]) -> RunConfig:
    """The configuration with what it leaves to the environment variables filled in: run, data_dir, state.url.

    ConfigError for a name that cannot be a directory's, for a data_dir inside a job's working directory, which is a
    copy that Ray removes, and for what is no URL of a store.
    """
    run = config.run or environ.get("METTA_RUN") or None
    if run is not None:
        check_run_name(run)
    state_url = config.state.url or environ.get(STATE_VARIABLE) or None
    if state_url is not None:
        check_store_url(state_url)
    return config.model_copy(
        update={
            "run": run,
            "data_dir": data_place(config.data_dir, environ),
            "state": config.state.model_copy(update={"url": state_url}),
        }
    )


def data_directory(data_dir: str | None, environ: Mapping[str, str]) -> Path:
    """On this machine: ``data_place``, or where the working copies of what lies in an object store are."""
    place = data_place(data_dir, environ)
    return working_directory(place) if places.is_remote(place) else Path(place)


def data_place(data_dir: str | None, environ: Mapping[str, str]) -> str:
    """``data_dir``, else $DATA_DIR, else ./train_dir; in a job the last is ~/train_dir. An absolute path or a URL."""
    in_job = JOB_VARIABLE in environ
    given = data_dir or environ.get("DATA_DIR")
    if given and places.is_remote(given):
        places.path_of_url(given)
        return given.rstrip("/")
    given = str(places.local_path(given)) if given else None
    path = Path(given or (Path.home() / "train_dir" if in_job else "train_dir")).expanduser().absolute()
    if in_job and Path.cwd() in (path, *path.parents) and WORKING_DIRECTORIES in path.parts:
        raise ConfigError(
            f"data_dir={given!r} lies in the job's working directory, a copy that Ray removes; "
            "name an absolute directory that all nodes reach"
        )
    return str(path)


def store_url(url: str | None, data_dir: str | Path) -> str:
    """Where records of runs are kept: ``url`` (``state.url``), or a file in ``data_dir``."""
    return url or f"sqlite:///{Path(data_dir).absolute()}/runs.sqlite"


class WorkerTarget(NamedTuple):
    """How many workers are wanted: a number, or bounds of an automatic one."""

    num_workers: int | None
    min_workers: int | None = None
    max_workers: int | None = None


def load_run_config(path: str | Path | None, overrides: Mapping[str, str]) -> RunConfig:
    """The checked configuration. ConfigError with one readable message for anything that cannot work.

    path: a YAML file of RunConfig's fields; ``env`` stands for what ``--env`` does.
    overrides: dotted names and text, e.g. of ``read_options``; also ``env``, and ``workers`` as ``8`` or ``2:16``.
    """
    file = {} if path is None else _read_yaml(Path(path))
    words: dict[str, Any] = dict(overrides)
    file_env, word_env = file.pop("env", None), words.pop("env", None)
    preset = words.pop("preset", None) or file.get("preset") or preset_for(word_env or file_env)

    settings = _merged(preset_settings(preset), _without_the_presets_curriculum(file))
    settings["preset"] = preset
    if file_env is not None:
        settings = apply_overrides(settings, environment_settings(file_env), schema=RunConfig)
    if word_env is not None:
        words |= environment_settings(word_env)
    elif "trainer.env" in words:
        words = {"trainer.curriculum": None} | words
    if "num_workers" in words:
        raise ConfigError(
            "--num-workers could mean two things; use --workers for rollout workers, "
            "--trainer.num-workers for the environment processes of each"
        )
    if "workers" in words:
        target = parse_workers(words.pop("workers"))
        words |= {f"rollout.{name}": value for name, value in target._asdict().items() if name != "num_workers"}
        words |= {"rollout.num_workers": target.num_workers} if target.num_workers else {}
    config = validated(RunConfig, apply_overrides(settings, words, schema=RunConfig))
    if config.state.url is not None:
        check_store_url(config.state.url)  # not by the model, whose messages repeat what they refuse
    return config


def parse_workers(text: str) -> WorkerTarget:
    """``8`` is a fixed number, ``2:16`` the bounds of an automatic one."""
    low, colon, high = str(text).strip().partition(":")
    try:
        numbers = [int(low), int(high)] if colon else [int(low)]
    except ValueError:
        numbers = []
    if not numbers or numbers != sorted(numbers) or numbers[0] < 1:
        raise ConfigError(
            f"workers={text!r} is not a number of workers; use 8, or 2:16 to let it follow the load between the two"
        )
    return WorkerTarget(None, *numbers) if colon else WorkerTarget(numbers[0])


def nearest_multiples(value: int, step: int) -> str:
    """``960 or 1024`` for 1000 and 64."""
    below = value // step * step
    return f"{below} or {below + step}" if below else str(step)


def _check_gpu(device: str, num_gpus: float, remedy: str) -> None:
    if device == "cuda" and not num_gpus:
        raise ValueError(
            f"device='cuda' with num_gpus={num_gpus}: Ray shows a process only the GPUs it reserved; "
            f"set num_gpus to {remedy}, or device=cpu"
        )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content or {}, dict):
        raise ConfigError(f"configuration {path} is not a mapping of settings but {type(content).__name__}")
    return content or {}


def _without_the_presets_curriculum(file: dict[str, Any]) -> dict[str, Any]:
    """A file that names only an environment does not mean the preset's curriculum, which would go before it."""
    trainer = file.get("trainer")
    if isinstance(trainer, dict) and trainer.get("env") and "curriculum" not in trainer:
        return file | {"trainer": trainer | {"curriculum": None}}
    return file


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` in it, section by section; an empty section changes nothing."""
    result = dict(base)
    for name, value in changes.items():
        old = result.get(name)
        if isinstance(old, Mapping) and (value is None or isinstance(value, Mapping)):
            result[name] = _merged(old, value or {})
        elif value is not None or name not in RunConfig.model_fields:
            result[name] = value
    return result
