"""The two processes of ``bench evaluation``, each pinned to a core before it starts.

python -m metta_ray.bench.evaluation_children train NETWORK SECONDS       # a line in, an epoch; out: steps, seconds
python -m metta_ray.bench.evaluation_children evaluate NETWORK DIRECTORY  # plays for ever; a line out per evaluation
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

from metta_ray.agent.factory import Agent
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.bench.evaluation_bench import MINIBATCH
from metta_ray.bench.train_bench import BATCH, ROWS
from metta_ray.bench.train_loop import Loop, LoopTask
from metta_ray.control.evaluation_queue import EvaluationRequest
from metta_ray.envs.registry import resolve_env
from metta_ray.rl.session import prepare_process
from metta_ray.service.evaluator import Evaluator
from metta_ray.service.identity import Identity

WORKLOAD, EVALUATED = "bucketed", "mettagrid:bucketed"


def train(network: str, seconds: str) -> None:
    """One epoch per line of stdin, until ``seconds`` are over: then an empty line."""
    prepare_process(0, threads=1)
    loop = Loop(LoopTask(network, WORKLOAD, 1, ROWS, BATCH, MINIBATCH, seconds=0.0, floor_seconds=0.0))
    loop.run_epoch()
    ends = time.perf_counter() + float(seconds)
    for _ in sys.stdin:
        began = time.perf_counter()
        if began >= ends:
            break
        steps = loop.run_epoch()
        print(steps, time.perf_counter() - began, flush=True)
    print(flush=True)


def evaluate(network: str, directory: str) -> None:
    """What a run's evaluator does, again and again with other seeds: it loads the policy, plays the suite of the
    training environment, and writes the results down."""
    settings = {"trainer": {"env": EVALUATED}}
    evaluator = Evaluator(Identity("bench", "evaluator", 0, "bench", 0), settings, directory)
    store = PolicyStore(device="cpu", data_dir=directory)
    record = store.create_empty_policy_record("model_0000", Path(directory) / "checkpoints")
    spec = resolve_env(EVALUATED).spec()
    record.policy = Agent(spec, config={"architecture": network}, device="cpu")
    uri = store.save(record).uri
    for number in itertools.count():
        result = evaluator.evaluate(EvaluationRequest(number, uri, seed=number))
        print(result["seconds"], flush=True)


if __name__ == "__main__":
    {"train": train, "evaluate": evaluate}[sys.argv[1]](*sys.argv[2:])
