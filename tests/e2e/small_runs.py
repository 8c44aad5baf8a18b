"""Options of trainings that take a second or two."""

SMALL_CARTPOLE = [
    "--preset",
    "cartpole",
    "--num-envs",
    "4",
    "--trainer.batch-size",
    "256",
    "--trainer.minibatch-size",
    "64",
    "--trainer.bptt-horizon",
    "32",
    "--trainer.autocast",  # what is promised bit for bit is promised in float32
    "none",
]
