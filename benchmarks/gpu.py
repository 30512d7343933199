"""What is measured on a GPU: the bits of a member in cohorts of several sizes, and the speed of cohorts.

python benchmarks/gpu.py exactness [SIZES]       the fingerprint of one seed, alone and in cohorts
python benchmarks/gpu.py speed [SIZES]           env_steps per second of cohorts, summed over members
"""

from __future__ import annotations

import qohort  # isort: skip  # before torch: it fixes the arithmetic

import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from qohort.config.composition import CONFIG_DIRECTORY
from qohort.runs.training import train

assert qohort.__version__

COMMON = ("trainer=gpu", "logger=none", "trainer.progress_bar=false", "callbacks=[none]", "checkpoint.every=10_000_000")
SMALL = ("evaluation.every=10_000_000", "evaluation.episodes=2", "evaluation.max_episode_steps=200")
CARTPOLE = (*SMALL, "experiment=cleanrl/cartpole", "env.backend=tensor", "learning_starts=500")
BREAKOUT = (
    *(*SMALL, "env=minatar", "env.backend=tensor", "network=minatar", "batch_size=32", "train_every=4"),
    *("learning_starts=500", "replay.capacity=2_000", "target_network.every=1_000"),
)


def run(seeds: list[int], *overrides: str) -> tuple[dict[int, str], list[dict[str, Any]]]:
    """Train a cohort; return the fingerprint of each seed, and the metric rows of the first."""
    with tempfile.TemporaryDirectory() as directory:
        with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
            seed = f"seed={seeds}".replace(" ", "")
            config = compose("train", [*COMMON, *overrides, seed, f"output_dir={directory}"])
        with contextlib.redirect_stdout(io.StringIO()):
            results = train(config)
        files = sorted(Path(directory).glob(f"**/seed-{seeds[0]}/metrics.jsonl"))
        rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    return {result["seed"]: result["fingerprint"] for result in results}, rows


def exactness(sizes: list[int]) -> bool:
    """Compare the first seed's fingerprint in cohorts of several sizes; return whether they are all equal."""
    equal = True
    for name, settings in {
        "DQN": ("agent=dqn",),
        "Rainbow": ("agent=rainbow",),
        "IQN": ("agent=iqn",),
        "DQN through Gymnasium": ("agent=dqn", "env.backend=gymnasium"),
        "MinAtar": ("env=minatar", "env.backend=tensor", "network=minatar"),
    }.items():
        short = (*SMALL, "budget=1_500", "learning_starts=200", "log_every=500", "batch_size=33")
        found = {}
        for size in sizes:
            began = time.perf_counter()
            found[size] = run([7, *range(100, 99 + size)], *short, *settings)[0][7]
            print(f"{name}, {size} members: {found[size][:16]} ({time.perf_counter() - began:.0f} s)", flush=True)
        equal &= len(set(found.values())) == 1
        print(f"{name}: {'equal' if len(set(found.values())) == 1 else 'DIFFERENT'}", flush=True)
    return equal


def speed(sizes: list[int]) -> None:
    """Print env_steps per second, without start-up, for cohorts of several sizes."""
    for name, settings in {"CartPole, CleanRL's settings": CARTPOLE, "MinAtar Breakout": BREAKOUT}.items():
        for size in sizes:
            rows = run(list(range(size)), *settings, "budget=2_000", "log_every=250")[1]
            timed = [row for row in rows if "env_steps_per_s" in row and row["env_steps"] >= 1_000]
            first, last = timed[0], timed[-1]
            seconds = last["wall_s"] - first["wall_s"]
            each = (last["env_steps"] - first["env_steps"]) / max(seconds, 1e-9)
            print(f"{name}, {size} members: {each * size:,.0f} env_steps/s", flush=True)


if __name__ == "__main__":
    command, sizes = sys.argv[1], [int(size) for size in sys.argv[2:]] or [1, 5, 30]
    if command == "speed":
        speed(sizes)
    else:
        sys.exit(0 if exactness(sizes) else 1)
