"""Settings of training, with the reference's names, defaults and checks. Loads no torch.

    TrainerConfig(total_timesteps=10_000_000, batch_size=16384, ppo=PPOConfig(gamma=0.99, gae_lambda=0.95))

Units: agent steps for ``*_timesteps``, ``batch_size``, ``minibatch_size``, ``bptt_horizon``; epochs for
``*_interval``. Sizes are per rank.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, ValidationError, model_validator

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.typed_config import StrictModel, did_you_mean, dotted_names
from metta_ray.rl.kickstarter_config import KickstartConfig, KickstartTeacherConfig

__all__ = [
    "CheckpointConfig",
    "HyperparameterSchedulerConfig",
    "InitialPolicyConfig",
    "KickstartConfig",
    "KickstartTeacherConfig",
    "OptimizerConfig",
    "PPOConfig",
    "PrioritizedExperienceReplayConfig",
    "RewardCenteringConfig",
    "ScheduleConfig",
    "ScheduleRule",
    "SimulationConfig",
    "TorchProfilerConfig",
    "TrainerConfig",
    "VTraceConfig",
]

_Share = Annotated[float, Field(ge=0, le=1)]
_NonNegative = Annotated[float, Field(ge=0)]
_Positive = Annotated[float, Field(gt=0)]
_PositiveInt = Annotated[int, Field(gt=0)]
_Interval = Annotated[int, Field(ge=0, description="epochs; 0 = off")]


class OptimizerConfig(StrictModel):
    """The optimiser. ``muon`` updates matrices by Muon and everything else by Adam."""

    type: Literal["adam", "muon"] = "adam"
    learning_rate: float = Field(default=0.0004573146765703167, gt=0, le=1)
    beta1: _Share = 0.9
    beta2: _Share = 0.999
    eps: _Positive = 1e-12
    weight_decay: _NonNegative = 0.0


class PPOConfig(StrictModel):
    """Proximal policy optimisation."""

    clip_coef: float = Field(default=0.1, gt=0, le=1, description="ε: importance ratios beyond 1 ± ε earn nothing")
    ent_coef: _NonNegative = Field(default=0.0021, description="weight of the entropy bonus")
    gae_lambda: _Share = Field(default=0.916, description="λ: 0 trusts the values, 1 the returns")
    gamma: _Share = Field(default=0.977, description="γ, discount per agent step")
    max_grad_norm: _Positive = Field(default=0.5, description="gradients are scaled down to this global norm")
    vf_clip_coef: _NonNegative = Field(default=0.1, description="values move at most this much (absolute)")
    vf_coef: _NonNegative = Field(default=0.44, description="weight of the value loss")
    l2_reg_loss_coef: _NonNegative = Field(default=0.0, description="weight of the squared weights")
    l2_init_loss_coef: _NonNegative = Field(
        default=0.0, description="weight of the squared distance to the initial weights"
    )
    norm_adv: bool = Field(default=True, description="standardise advantages over the minibatch of all ranks")
    clip_vloss: bool = True
    target_kl: float | None = Field(
        default=None, gt=0, description="stop an epoch's updates when the mean KL exceeds this; None = never"
    )


class PrioritizedExperienceReplayConfig(StrictModel):
    """Which segments of the batch the minibatches are made of."""

    prio_alpha: _Share = Field(default=0.0, description="0 = every segment once, 1 = by advantage")
    prio_beta0: _Share = Field(default=0.6, description="initial strength of the correction; rises to 1")


class VTraceConfig(StrictModel):
    """Clips of the importance ratio in the advantage recurrence."""

    vtrace_rho_clip: _Positive = 1.0
    vtrace_c_clip: _Positive = 1.0


class RewardCenteringConfig(StrictModel):
    """Subtracts a running mean reward per agent, r̄ ← r̄ + β (r - r̄); meant for γ near 1."""

    enabled: bool = False
    beta: float = Field(default=1e-3, gt=0, le=1)


class InitialPolicyConfig(StrictModel):
    """Weights to start a new run from, chosen in the policy store."""

    uri: str | None = None
    type: Literal["top", "latest", "specific"] = "top"
    range: int = Field(default=1, gt=0, description="how many of the best or latest to choose from")
    metric: str = Field(default="epoch", description="what 'top' sorts by")
    filters: dict[str, Any] = Field(default_factory=dict, description="metadata that must match")


class CheckpointConfig(StrictModel):
    """When and where training state is saved."""

    checkpoint_interval: int = Field(default=60, gt=0, description="epochs")
    wandb_checkpoint_interval: _Interval = 300
    checkpoint_dir: str = Field(default="", description="empty = checkpoints/ in the run directory")
    keep_last: int = Field(default=5, ge=0, description="checkpoints to keep; 0 = all")


class SimulationConfig(StrictModel):
    """When the trainer evaluates. (What it plays then is ``metta_ray.sim.simulation_config``.)"""

    evaluate_interval: _Interval = 300
    replay_dir: str = Field(default="", description="empty = replays/ in the run directory")
    evaluate_remote: Literal[False] = Field(default=False, description="evaluation runs beside training")
    skip_git_check: bool = Field(default=False, description="no effect without remote evaluation")
    git_hash: str | None = Field(default=None, description="no effect without remote evaluation")


class TorchProfilerConfig(StrictModel):
    """A profile of one epoch, now and then."""

    interval_epochs: _Interval = 10_000
    profile_dir: str = Field(default="", description="empty = torch_traces/ in the run directory")

    @property
    def enabled(self) -> bool:
        return self.interval_epochs > 0


class ScheduleConfig(StrictModel):
    """How a value moves while training progresses from 0 to 1; formulas in hyperparameter_schedule.py."""

    type: Literal["constant", "linear", "cosine", "exponential", "logarithmic"]
    initial_value: float | None = Field(default=None, description="None = the value in the configuration")
    min_value: float | None = Field(default=None, description="value at the end; None = a tenth of the initial")
    rate: float | None = Field(
        default=None,
        gt=0,
        validation_alias=AliasChoices("rate", "decay_rate"),
        description="exponential (None = 0.95, below 1) and logarithmic (None = 0.1)",
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_class_target(cls, data: Any) -> Any:
        """``_target_: some.module.CosineSchedule`` means ``type: cosine``."""
        if isinstance(data, dict) and "_target_" in data and "type" not in data:
            class_name = str(data["_target_"]).rsplit(".", 1)[-1]
            data = {key: value for key, value in data.items() if key != "_target_"}
            data["type"] = class_name.removesuffix("Schedule").lower()
        return data

    @model_validator(mode="after")
    def _rate_fits(self) -> Self:
        if self.rate is not None and self.type not in ("exponential", "logarithmic"):
            raise ValueError(f"rate={self.rate} has no meaning for type={self.type!r}; leave it out")
        if self.type == "exponential" and self.rate is not None and self.rate > 1:
            raise ValueError(f"rate={self.rate} makes an exponential schedule grow; at most 1")
        if self.type == "constant" and self.min_value is not None:
            raise ValueError(f"min_value={self.min_value} has no meaning for type='constant'; leave it out")
        return self


class ScheduleRule(ScheduleConfig):
    """A schedule of any setting, e.g. ``path: ppo.vf_coef``."""

    path: str = Field(description="dotted name of a float in TrainerConfig")


_NAMED_SCHEDULES = {
    "learning_rate_schedule": "optimizer.learning_rate",
    "ppo_clip_schedule": "ppo.clip_coef",
    "ppo_ent_coef_schedule": "ppo.ent_coef",
    "ppo_vf_clip_schedule": "ppo.vf_clip_coef",
    "ppo_l2_reg_loss_schedule": "ppo.l2_reg_loss_coef",
    "ppo_l2_init_loss_schedule": "ppo.l2_init_loss_coef",
}

# Settings that are read anew in every epoch, so that a schedule of them acts.
_SCHEDULABLE_SECTIONS = ("optimizer", "ppo", "vtrace", "prioritized_experience_replay", "reward_centering")


class HyperparameterSchedulerConfig(StrictModel):
    """Schedules by the reference's six names, and for anything else by rule."""

    learning_rate_schedule: ScheduleConfig | None = None
    ppo_clip_schedule: ScheduleConfig | None = None
    ppo_ent_coef_schedule: ScheduleConfig | None = None
    ppo_vf_clip_schedule: ScheduleConfig | None = None
    ppo_l2_reg_loss_schedule: ScheduleConfig | None = None
    ppo_l2_init_loss_schedule: ScheduleConfig | None = None
    rules: list[ScheduleRule] = Field(default_factory=list)

    @property
    def schedules(self) -> dict[str, ScheduleConfig]:
        """Dotted name of a setting → its schedule."""
        named = {path: getattr(self, name) for name, path in _NAMED_SCHEDULES.items()}
        chosen = {path: schedule for path, schedule in named.items() if schedule is not None}
        return chosen | {rule.path.replace("-", "_"): rule for rule in self.rules}

    @model_validator(mode="after")
    def _one_schedule_per_setting(self) -> Self:
        given = [path for name, path in _NAMED_SCHEDULES.items() if getattr(self, name) is not None]
        given += [rule.path.replace("-", "_") for rule in self.rules]
        for path in given:
            if given.count(path) > 1:
                raise ValueError(f"{path} has two schedules; leave one out")
        return self


class TrainerConfig(StrictModel):
    """All of training. Also accepts the older ``lr_scheduler: {enabled, schedule_type}``."""

    total_timesteps: _PositiveInt = Field(default=50_000_000_000, description="agent steps over all ranks")
    seed: int = Field(default=0, ge=0, description="root of all randomness of the run")

    ppo: PPOConfig = Field(default_factory=PPOConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    hyperparameter_scheduler: HyperparameterSchedulerConfig = Field(default_factory=HyperparameterSchedulerConfig)
    prioritized_experience_replay: PrioritizedExperienceReplayConfig = Field(
        default_factory=PrioritizedExperienceReplayConfig
    )
    vtrace: VTraceConfig = Field(default_factory=VTraceConfig)
    reward_centering: RewardCenteringConfig = Field(default_factory=RewardCenteringConfig)
    kickstart: KickstartConfig = Field(default_factory=KickstartConfig)
    initial_policy: InitialPolicyConfig = Field(default_factory=InitialPolicyConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    simulation: SimulationConfig = Field(default_factory=SimulationConfig)
    profiler: TorchProfilerConfig = Field(default_factory=TorchProfilerConfig)

    batch_size: _PositiveInt = Field(default=524_288, description="agent steps per epoch and rank")
    minibatch_size: _PositiveInt = Field(
        default=16_384,
        description="agent steps per gradient step and rank; where batch_size cannot be divided by the "
        "default, the largest part of it that can take its place",
    )
    bptt_horizon: _PositiveInt = Field(default=64, description="agent steps through which gradients flow")
    update_epochs: _PositiveInt = Field(default=1, description="passes over each batch")
    scale_batches_by_world_size: bool = Field(
        default=False, description="divide batch_size and the forward target by the number of ranks"
    )
    max_nonfinite_updates: int = Field(
        default=3, ge=1, description="so many updates in a row with NaN or infinity end the run"
    )

    forward_pass_minibatch_target_size: _PositiveInt = Field(
        default=4096, description="agents per inference call, roughly"
    )
    async_factor: _PositiveInt = Field(default=2, description="groups of environments in flight")
    num_workers: _PositiveInt = Field(default=1, description="environment processes per rank")
    zero_copy: bool = Field(default=True, description="hand out shared memory instead of copies")
    require_contiguous_env_ids: bool = Field(default=False, description="no effect; ids always are contiguous")
    verbose: bool = Field(default=True, description="no effect")

    cpu_offload: bool = Field(default=False, description="keep observations in host memory")
    compile: bool = Field(default=False, description="torch.compile the policy")
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "reduce-overhead"
    autocast: Literal["auto", "none", "bf16"] = Field(
        default="auto",
        description="precision of the networks; none: fp32. auto: bf16 where this machine computes it at least a tenth "
        "faster, found at a run's start and kept for its life; fp32 on a cluster, whose nodes may differ",
    )

    env: str | None = Field(default=None, description="environment without a curriculum, e.g. gym:CartPole-v1")
    curriculum: str | None = Field(
        default="/env/mettagrid/curriculum/simple",
        description="goes before env; None where only env is given",
    )
    env_overrides: dict[str, Any] = Field(default_factory=dict, description="settings for every task")
    grad_mean_variance_interval: _Interval = 0

    @property
    def curriculum_or_env(self) -> str:
        """What to train on."""
        return self.curriculum or self.env or ""

    def scaled_to_world_size(self, world_size: int) -> TrainerConfig:
        """The settings of one of ``world_size`` ranks: itself, unless ``scale_batches_by_world_size``.

        ``minibatch_size`` stays, as in the reference; ConfigError if the smaller batch no longer fits it.
        """
        if not self.scale_batches_by_world_size or world_size == 1:
            return self
        if self.batch_size % world_size:
            raise ConfigError(
                f"batch_size={self.batch_size} is not a multiple of world_size={world_size}; nearest: "
                f"{_nearest_multiples(self.batch_size, world_size)}"
            )
        return TrainerConfig.from_mapping(
            self.model_dump()
            | {
                "batch_size": self.batch_size // world_size,
                "forward_pass_minibatch_target_size": max(self.forward_pass_minibatch_target_size // world_size, 1),
            }
        )

    def in_run_dir(self, run_dir: str | Path) -> TrainerConfig:
        """A copy whose empty directories lie in ``run_dir``."""
        run_dir = Path(run_dir)
        config = self.model_copy(deep=True)
        config.checkpoint.checkpoint_dir = config.checkpoint.checkpoint_dir or str(run_dir / "checkpoints")
        config.simulation.replay_dir = config.simulation.replay_dir or str(run_dir / "replays")
        config.profiler.profile_dir = config.profiler.profile_dir or str(run_dir / "torch_traces")
        return config

    @model_validator(mode="before")
    @classmethod
    def _adapt_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if data.get("env") and "curriculum" not in data:
            data["curriculum"] = None
        if "lr_scheduler" in data:
            _convert_lr_scheduler(data)
        if "minibatch_size" not in data:
            data["minibatch_size"] = _default_minibatch(data, cls)
        return data

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        _check_sizes(self)
        _check_intervals(self)
        _check_schedules(self)
        if not self.curriculum_or_env:
            raise ValueError("neither curriculum nor env is set; set one, e.g. curriculum=/env/mettagrid/smoke")
        return self


def _default_minibatch(data: dict[str, Any], model: type[TrainerConfig]) -> int:
    """The largest divisor of the batch, in whole horizons, that does not exceed the default minibatch."""
    fields = model.model_fields
    default: int = fields["minibatch_size"].default
    try:
        batch = int(data.get("batch_size", fields["batch_size"].default))
        horizon = int(data.get("bptt_horizon", fields["bptt_horizon"].default))
    except (TypeError, ValueError):
        return default  # their own fields will say what is wrong
    if batch <= 0 or horizon <= 0 or batch % horizon:
        return default
    segments = batch // horizon
    most = min(max(default // horizon, 1), segments)
    return horizon * next(count for count in range(most, 0, -1) if segments % count == 0)


def _convert_lr_scheduler(data: dict[str, Any]) -> None:
    """``lr_scheduler`` of the older configuration as a learning rate schedule that falls to 0."""
    old = data.pop("lr_scheduler") or {}
    if not isinstance(old, dict):
        raise ValueError(f"lr_scheduler={old!r} is not a mapping; use hyperparameter_scheduler")
    for key in old:
        if key not in ("enabled", "anneal_lr", "warmup_steps", "schedule_type"):
            raise ValueError(f"lr_scheduler.{key} is unknown; use hyperparameter_scheduler")
    if old.get("warmup_steps"):
        raise ValueError("lr_scheduler.warmup_steps never had an effect; leave it out")
    if old.get("enabled") or old.get("anneal_lr"):
        schedule = {"type": old.get("schedule_type") or "cosine", "min_value": 0.0}
        newer = dict(data.get("hyperparameter_scheduler") or {})
        if newer.get("learning_rate_schedule"):
            raise ValueError("lr_scheduler and hyperparameter_scheduler.learning_rate_schedule: leave one out")
        data["hyperparameter_scheduler"] = {**newer, "learning_rate_schedule": schedule}


def _check_sizes(config: TrainerConfig) -> None:
    batch, minibatch, horizon = config.batch_size, config.minibatch_size, config.bptt_horizon
    if batch % horizon:
        raise ValueError(
            f"batch_size={batch} is not a multiple of bptt_horizon={horizon}; nearest: "
            f"{_nearest_multiples(batch, horizon)}"
        )
    if minibatch % horizon:
        raise ValueError(
            f"minibatch_size={minibatch} is not a multiple of bptt_horizon={horizon}; nearest: "
            f"{_nearest_multiples(minibatch, horizon)}"
        )
    if minibatch > batch:
        raise ValueError(
            f"minibatch_size={minibatch} is larger than batch_size={batch}; nearest: minibatch_size={batch}"
        )
    if batch % minibatch:
        raise ValueError(
            f"batch_size={batch} is not a multiple of minibatch_size={minibatch}; nearest: "
            f"{_nearest_multiples(batch, minibatch)}"
        )


def _check_intervals(config: TrainerConfig) -> None:
    checkpoint = config.checkpoint.checkpoint_interval
    upload = config.checkpoint.wandb_checkpoint_interval
    evaluate = config.simulation.evaluate_interval
    # What is evaluated or uploaded must have been saved.
    if evaluate and evaluate < checkpoint:
        raise ValueError(
            f"simulation.evaluate_interval={evaluate} is below checkpoint.checkpoint_interval={checkpoint}; "
            f"nearest: {checkpoint}, or 0 for no evaluation"
        )
    if upload and upload < checkpoint:
        raise ValueError(
            f"checkpoint.wandb_checkpoint_interval={upload} is below "
            f"checkpoint.checkpoint_interval={checkpoint}; nearest: {checkpoint}, or 0 for none"
        )
    if evaluate and evaluate < upload:
        raise ValueError(
            f"simulation.evaluate_interval={evaluate} is below "
            f"checkpoint.wandb_checkpoint_interval={upload}; nearest: {upload}, or 0 for no evaluation"
        )


def _check_schedules(config: TrainerConfig) -> None:
    for path, schedule in config.hyperparameter_scheduler.schedules.items():
        section, _, field = path.partition(".")
        names = schedulable_names()
        if path not in names:
            raise ValueError(f"a schedule for {path!r} would not act{did_you_mean(path, names)}")
        ends = (schedule.initial_value, schedule.min_value)
        if path == "optimizer.learning_rate":
            if any(end is not None and not 0 <= end <= 1 for end in ends):
                raise ValueError(f"schedule of {path}: {ends} must lie between 0 and 1")
            continue
        for end in ends:
            if end is None:
                continue
            try:
                setattr(getattr(config, section).model_copy(), field, end)
            except ValidationError as error:
                message = error.errors()[0]["msg"]
                raise ValueError(f"schedule of {path} reaches {end}: {message}") from None


def schedulable_names() -> list[str]:
    """Dotted names of the settings that a schedule may move."""
    return [
        name for name in dotted_names(TrainerConfig) if name.split(".")[0] in _SCHEDULABLE_SECTIONS and _is_float(name)
    ]


def _is_float(name: str) -> bool:
    section, _, field = name.partition(".")
    if not field:
        return False
    model = TrainerConfig.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, StrictModel)
    return model.model_fields[field].annotation is float


def _nearest_multiples(value: int, step: int) -> str:
    below = math.floor(value / step) * step
    return f"{below} or {below + step}" if below else f"{below + step}"
