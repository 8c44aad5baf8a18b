"""Plays a finished policy beside or after training; its failure never touches training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metta_ray.agent.policy_store import PolicyStore
from metta_ray.eval.evaluation import evaluate_run
from metta_ray.rl.run_directories import RunDirectories
from metta_ray.rl.session import prepare_process, prepare_thread
from metta_ray.service.identity import Identity
from metta_ray.service.lease import Lease
from metta_ray.service.process_info import ProcessInfo
from metta_ray.service.run_config import RunConfig


class Evaluator:
    """Evaluates policies of one run. Results go to the run's database and to the policy's own directory."""

    def __init__(self, identity: Identity, config: RunConfig | dict[str, Any], run_dir: str) -> None:
        self.identity = identity
        self._config = RunConfig.from_mapping(config)
        self._run_dir = Path(run_dir)
        self._lease = Lease(self._config.failure.lease_s)
        prepare_process(self._config.trainer.seed)

    def __repr__(self) -> str:
        return str(self.identity)

    def evaluate(self, policy_uri: str) -> str:
        """The table of scores and where the results lie, as text."""
        prepare_thread(1)
        trainer = self._config.trainer
        store = PolicyStore(device="cpu")
        dirs = RunDirectories(
            run_dir=str(self._run_dir),
            checkpoint_dir=str(self._run_dir / "checkpoints"),
            replay_dir=str(self._run_dir / "replays"),
            stats_dir=str(self._run_dir / "stats"),
            run_name=self.identity.run,
        )
        record = store.load_from_uri(policy_uri)
        return evaluate_run(record, trainer.curriculum_or_env, trainer.env_overrides, dirs, store)

    def describe(self) -> ProcessInfo:
        self._lease.renew()
        return ProcessInfo.of_this_process(self.identity.incarnation)
