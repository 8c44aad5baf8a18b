"""A learner that is ten times too slow, on an object store that is small: fragments wait within their budget."""

from __future__ import annotations

from tests.ray.harness import Lab

BUDGET = 2_000_000
"""Bytes: 14 fragments. Pacing alone would let workers collect ten times as many ahead."""
WEIGHTS = 200_000
"""Bytes of weights and optimiser state, generously."""
STEPS, BATCH = 128, 512
RUN = [
    *("--preset", "cartpole", "--env", "slow_parts:Wide", "--agent.architecture", "slow_parts:Network"),
    *("--agent.lstm-hidden-size", 0, "--evaluate", "false", "--workers", 2, "--rollout.num-envs", 1),
    *("--trainer.bptt-horizon", STEPS, "--trainer.batch-size", BATCH, "--trainer.minibatch-size", 128),
    *("--trainer.update-epochs", 1, "--pacing.target-staleness", 40, "--pacing.max-staleness", 60),
    *("--pacing.byte-budget", BUDGET, "--rollout.num-cpus", 0.1, "--learner.num-cpus", 0.1),
]


def test_fragments_of_a_slow_learner_stay_within_their_budget_and_never_spill(lab: Lab) -> None:
    (lab.directory / "oracle").mkdir()
    (lab.directory / "oracle" / "slow-learner").write_text("0.25")  # four times per update; a batch takes a tenth
    head = lab.head(num_cpus=2, object_store_memory=80_000_000)
    run = lab.train(*RUN, "--total-timesteps", 100_000_000, run="slow", head=head)
    run.wait_for_version(1)

    outstanding, used, queued = [], [], []
    while run.version < 6:
        status = run.status()
        assert status["byte_budget"] == BUDGET
        outstanding.append(status["bytes_outstanding"])
        queued.append(status["ledger"]["queued"])
        used.append(run.ask("object_store_bytes"))

    print(
        f"at most {max(outstanding):,} bytes outstanding, {max(used):,} in the object store, {max(queued)} steps queued"
    )
    fragment = status["bytes_outstanding"] // ((status["ledger"]["in_flight"] + status["ledger"]["queued"]) // STEPS)
    assert fragment > 100_000
    assert max(queued) >= 2 * BATCH, "fragments wait for the learner"
    assert BUDGET - fragment < max(outstanding) <= BUDGET, "the budget was what held the workers back"
    # Ray frees a moment later what was trained on: a batch may still be there when the next is on its way.
    assert max(used) <= BUDGET + BATCH // STEPS * fragment + WEIGHTS
    assert run.ask("spilled_bytes") == 0
    run.finish()
    run.check_nothing_is_left()
    run.check_books()
