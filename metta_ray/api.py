"""The library's front door. Everything here has its home elsewhere; nothing is defined here."""

from metta_ray.agent.agent_config import AgentConfig
from metta_ray.agent.factory import Agent
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.common.errors import MettaRayError, TrainingDiverged
from metta_ray.common.profiling.stopwatch import Stopwatch
from metta_ray.common.util.heartbeat import record_heartbeat
from metta_ray.common.util.system_monitor import SystemMonitor
from metta_ray.eval.evaluation import evaluate_run
from metta_ray.mettagrid.curriculum.core import PreBuiltConfigCurriculum
from metta_ray.mettagrid.curriculum.forecast import curriculum_note
from metta_ray.rl.advantage import compute_advantage
from metta_ray.rl.curriculum_log import CurriculumLog
from metta_ray.rl.diagnostics import gradient_stats, profiled_epoch
from metta_ray.rl.distributed import (
    cleanup_distributed,
    setup_device_and_distributed,
    setup_distributed_vars,
    sum_over_ranks,
    wrap_agent_distributed,
)
from metta_ray.rl.environment import Environment
from metta_ray.rl.experience import Experience
from metta_ray.rl.formulation import resolve_formulation
from metta_ray.rl.hyperparameter_schedule import HyperparameterScheduler
from metta_ray.rl.initial_policy import load_initial_policy
from metta_ray.rl.kickstarter import Kickstarter
from metta_ray.rl.losses import Losses
from metta_ray.rl.optimizer import Optimizer
from metta_ray.rl.progress import EpochProgress, MetricsLog
from metta_ray.rl.rollout import perform_rollout_step
from metta_ray.rl.run_directories import (
    RunDirectories,
    save_experiment_config,
    set_run_aside,
    setup_run_directories,
)
from metta_ray.rl.run_options import RunOptions, parse_run_options
from metta_ray.rl.session import StopRequest, prepare_process
from metta_ray.rl.stats import accumulate_rollout_stats, process_training_stats
from metta_ray.rl.trackers import open_trackers
from metta_ray.rl.trainer_checkpoint import load_checkpoint, naming_last_checkpoint, save_checkpoint
from metta_ray.rl.trainer_config import (
    CheckpointConfig,
    OptimizerConfig,
    PPOConfig,
    SimulationConfig,
    TrainerConfig,
)
from metta_ray.rl.update import (
    calculate_anneal_beta,
    maybe_update_l2_weights,
    process_minibatch_update,
    should_run_on_interval,
    update_policy,
)
from metta_ray.sim.simulation_suite import (
    create_evaluation_config_suite,
    create_replay_config,
    evaluate_policy,
)

__all__ = [
    "Agent",
    "AgentConfig",
    "CheckpointConfig",
    "CurriculumLog",
    "Environment",
    "EpochProgress",
    "Experience",
    "HyperparameterScheduler",
    "Kickstarter",
    "Losses",
    "MetricsLog",
    "MettaRayError",
    "Optimizer",
    "OptimizerConfig",
    "PPOConfig",
    "PolicyStore",
    "PreBuiltConfigCurriculum",
    "RunDirectories",
    "RunOptions",
    "SimulationConfig",
    "StopRequest",
    "Stopwatch",
    "SystemMonitor",
    "TrainerConfig",
    "TrainingDiverged",
    "accumulate_rollout_stats",
    "calculate_anneal_beta",
    "cleanup_distributed",
    "compute_advantage",
    "create_evaluation_config_suite",
    "create_replay_config",
    "curriculum_note",
    "evaluate_policy",
    "evaluate_run",
    "gradient_stats",
    "load_checkpoint",
    "load_initial_policy",
    "maybe_update_l2_weights",
    "naming_last_checkpoint",
    "open_trackers",
    "parse_run_options",
    "perform_rollout_step",
    "prepare_process",
    "process_minibatch_update",
    "process_training_stats",
    "profiled_epoch",
    "record_heartbeat",
    "resolve_formulation",
    "save_checkpoint",
    "save_experiment_config",
    "set_run_aside",
    "setup_device_and_distributed",
    "setup_distributed_vars",
    "setup_run_directories",
    "should_run_on_interval",
    "sum_over_ranks",
    "update_policy",
    "wrap_agent_distributed",
]
