"""Plain Stable-Baselines3 PPO on CartPole; run by train_bench in an interpreter that has it. Imports nothing else.

python sb3_cartpole.py '{"rows": 8, "batch": 2048, "minibatch": 256, "update_epochs": 4, "seconds": 10, …}'
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    import torch
    from stable_baselines3 import PPO  # type: ignore[import-not-found]
    from stable_baselines3.common.env_util import make_vec_env  # type: ignore[import-not-found]

    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=settings["rows"], seed=0),
        n_steps=settings["batch"] // settings["rows"],
        batch_size=settings["minibatch"],
        n_epochs=settings["update_epochs"],
        device="cpu",
    )
    model.learn(2 * settings["batch"])  # warm-up
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < settings["seconds"]:
        model.learn(2 * settings["batch"], reset_num_timesteps=False)
        steps += 2 * settings["batch"]
    print(json.dumps({"env_steps_per_second": steps / (time.perf_counter() - began)}))


if __name__ == "__main__":
    main()
