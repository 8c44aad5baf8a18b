"""The training functions under one roof, for scripts written against ``metta.rl.functions``."""

from metta_ray.rl.advantage import compute_advantage
from metta_ray.rl.rollout import perform_rollout_step
from metta_ray.rl.stats import accumulate_rollout_stats, process_training_stats
from metta_ray.rl.update import (
    calculate_anneal_beta,
    maybe_update_l2_weights,
    process_minibatch_update,
    should_run_on_interval,
)

__all__ = [
    "accumulate_rollout_stats",
    "calculate_anneal_beta",
    "compute_advantage",
    "maybe_update_l2_weights",
    "perform_rollout_step",
    "process_minibatch_update",
    "process_training_stats",
    "should_run_on_interval",
]
