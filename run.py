#!/usr/bin/env python3
"""Train a policy: python run.py, or torchrun --nproc_per_node=2 run.py. All options: python run.py --help

The whole loop is here, in plain Python: collect a batch, train on it, say how it goes, save, and at the end play
evaluation episodes. Run it again with the same --run NAME and it continues exactly where it stopped.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from metta_ray.api import (
    Agent,
    CurriculumLog,
    Environment,
    EpochProgress,
    Experience,
    HyperparameterScheduler,
    Kickstarter,
    Losses,
    MetricsLog,
    MettaRayError,
    Optimizer,
    PolicyStore,
    RunOptions,
    StopRequest,
    Stopwatch,
    TrainerConfig,
    TrainingDiverged,
    accumulate_rollout_stats,
    cleanup_distributed,
    curriculum_note,
    evaluate_run,
    gradient_stats,
    load_checkpoint,
    load_initial_policy,
    maybe_update_l2_weights,
    naming_last_checkpoint,
    open_trackers,
    parse_run_options,
    perform_rollout_step,
    prepare_process,
    process_training_stats,
    profiled_epoch,
    record_heartbeat,
    resolve_formulation,
    save_checkpoint,
    save_experiment_config,
    set_run_aside,
    setup_device_and_distributed,
    setup_distributed_vars,
    setup_run_directories,
    should_run_on_interval,
    sum_over_ranks,
    update_policy,
    wrap_agent_distributed,
)


def main(argv: list[str] | None = None) -> int:
    try:
        return train(parse_run_options(sys.argv[1:] if argv is None else argv))
    except TrainingDiverged as error:
        print(f"training stopped: {error}", file=sys.stderr)
        return 1
    except MettaRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        cleanup_distributed()


def train(options: RunOptions) -> int:
    device = setup_device_and_distributed(options.device)
    is_master, world_size, _ = setup_distributed_vars()
    prepare_process(options.trainer.seed, threads=options.threads)

    # Options that do not fit together are found here, before anything is written.
    vecenv = Environment(**options.environment())
    options = resolve_formulation(options, vecenv, device)
    config = options.trainer.scaled_to_world_size(world_size)
    agent = Agent(vecenv, config=options.agent, device=str(device))
    agent.autocast_dtype = torch.bfloat16 if config.autocast == "bf16" else None
    experience = build_experience(config, vecenv, agent, device)
    optimizer = build_optimizer(config, agent)
    policy_store = PolicyStore(device=str(device), data_dir=options.data_dir or "./train_dir")
    kickstarter = Kickstarter(config.kickstart, device, policy_store, vecenv)

    if options.fresh and options.run and is_master:
        set_run_aside(options.run, options.data_dir)
    dirs = setup_run_directories(options.run, options.data_dir)
    save_experiment_config(dirs, device, config, **options.record())
    config = config.in_run_dir(dirs.run_dir)
    timer = Stopwatch()
    timer.start()
    progress = EpochProgress(timer, config.total_timesteps)

    state: dict[str, Any] = {
        "agent": agent,
        "optimizer": optimizer,
        "policy_store": policy_store,
        "experience": experience,
        "vecenv": vecenv,
        "kickstarter": kickstarter,
        "timer": timer,
        "progress": progress,
    }
    agent_step, epoch, resumed_from = load_checkpoint(config.checkpoint.checkpoint_dir, **state)
    if resumed_from:
        say(f"continuing {dirs.run_name} after epoch {epoch}, {agent_step:,} agent steps, from {resumed_from}:")
        say("  restored weights, optimiser, schedules, curriculum, environments, recurrent state, random states")
    elif initial_policy := load_initial_policy(agent, policy_store, config.initial_policy):
        say(f"starting from the weights of {initial_policy}")
    if config.compile:
        agent.compile(mode=config.compile_mode)
    policy = wrap_agent_distributed(agent, device)

    say(
        f"run {dirs.run_name}: {config.curriculum_or_env}, {vecenv.num_envs} environments, {vecenv.num_agents} agents, "
        f"{agent.total_params:,} parameters, {world_size} process(es), {config.total_timesteps:,} agent steps"
    )
    agents_per_env = world_size * vecenv.num_agents // vecenv.num_envs  # every rank has a curriculum of its own
    if note := curriculum_note(vecenv.curriculum, config.total_timesteps, agents_per_env):
        say(f"note: {note}")
    schedule = HyperparameterScheduler(config, optimizer)
    losses = Losses()
    trackers = open_trackers(
        dirs.run_dir, dirs.run_name, options.record(), tensorboard=options.tensorboard, wandb=options.wandb
    )
    if options.metrics_port is not None and is_master:
        from metta_ray.metrics.prometheus_exporter import PrometheusTracker

        trackers.append(PrometheusTracker(dirs.run_name, config.total_timesteps, options.metrics_port, say))
    log = MetricsLog(dirs.run_dir, keep_until_epoch=epoch, trackers=trackers)
    curriculum_log = CurriculumLog(dirs.run_dir, config.total_timesteps)
    stop = StopRequest()
    last_epoch = epoch + options.stop_after_epochs if options.stop_after_epochs else None
    progress.lap(0)  # the first epoch is not charged for the start
    is_last = agent_step >= config.total_timesteps  # a finished run that is started again plays its evaluation
    record = policy_store.load_from_uri(resumed_from) if is_last and resumed_from else None
    while not is_last:
        hyperparameters = schedule.step(agent_step)
        with profiled_epoch(config.profiler, epoch), naming_last_checkpoint(config.checkpoint.checkpoint_dir):
            # Collect one batch: every agent takes bptt_horizon steps, as often as fit.
            stats: dict[str, list[Any]] = {}
            steps = 0
            experience.reset_for_rollout()
            while not experience.ready_for_training:
                num_steps, infos = perform_rollout_step(policy, vecenv, experience, device, timer)
                accumulate_rollout_stats(infos, stats)
                steps += num_steps
            steps = sum_over_ranks(steps)
            agent_step += steps
            # Train on it.
            update_policy(policy, optimizer, experience, config, kickstarter, agent_step, epoch, losses, device, timer)
        epoch += 1
        maybe_update_l2_weights(agent, epoch, agent.config.l2_init_weight_update_interval)
        record_heartbeat(os.environ.get("HEARTBEAT_FILE"))

        metrics = process_training_stats(stats)
        if should_run_on_interval(epoch, config.grad_mean_variance_interval):
            metrics |= gradient_stats(policy)
        speed = progress.lap(steps)
        say(progress.line(epoch, agent_step, stats.get("episode/return", []), speed))
        log.write(epoch, agent_step, speed, metrics, losses=losses.stats(), hyperparameters=hyperparameters)
        curriculum_log.note(epoch, agent_step, vecenv.curriculum)

        is_last = agent_step >= config.total_timesteps or epoch == last_epoch or stop.is_set()
        record = save_checkpoint(
            epoch,
            agent_step,
            checkpoint_path=config.checkpoint.checkpoint_dir,
            checkpoint_interval=config.checkpoint.checkpoint_interval,
            keep_last_n=config.checkpoint.keep_last,
            stats=metrics,
            force_save=is_last,
            **state,
        )
        if record and should_run_on_interval(epoch, config.simulation.evaluate_interval) and not is_last:
            say(evaluate_run(record, config.curriculum_or_env, config.env_overrides, dirs, policy_store))
            progress.lap(0)  # the next epoch is not charged for it

    stop.restore()
    vecenv.close()
    log.close()
    if record and is_master:
        if options.evaluate:
            say(evaluate_run(record, config.curriculum_or_env, config.env_overrides, dirs, policy_store))
        say(f"checkpoint: {record.uri}")
        start = (
            "python run.py --run" if world_size == 1 else f"torchrun --nproc_per_node={world_size} run.py --run-name"
        )
        say(f"resume:     {start} {dirs.run_name} with the same options, and more --total-timesteps")
    return 0


def build_experience(config: TrainerConfig, vecenv: Any, agent: Any, device: torch.device) -> Experience:
    centering = config.reward_centering
    return Experience(
        total_agents=vecenv.num_agents,
        batch_size=config.batch_size,
        bptt_horizon=config.bptt_horizon,
        minibatch_size=config.minibatch_size,
        max_minibatch_size=config.minibatch_size,
        obs_space=vecenv.driver_env.single_observation_space,
        atn_space=vecenv.driver_env.single_action_space,
        device=device,
        hidden_size=agent.hidden_size,
        cpu_offload=config.cpu_offload,
        num_lstm_layers=agent.core_num_layers,
        agents_per_batch=vecenv.agents_per_batch,
        reward_centering_rate=centering.beta if centering.enabled else None,
    )


def build_optimizer(config: TrainerConfig, agent: Any) -> Optimizer:
    return Optimizer(
        optimizer_type=config.optimizer.type,
        policy=agent,
        learning_rate=config.optimizer.learning_rate,
        betas=(config.optimizer.beta1, config.optimizer.beta2),
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
        max_grad_norm=config.ppo.max_grad_norm,
        max_nonfinite_updates=config.max_nonfinite_updates,
    )


def say(text: str) -> None:
    """Prints on rank 0."""
    if setup_distributed_vars()[0]:
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
