"""What is measured on a GPU: the bits of a member in cohorts of several sizes, and the speed of cohorts.

python benchmarks/gpu.py names                   what exactness can check, by name
python benchmarks/gpu.py exactness NAME [SIZES]  the fingerprint of one seed, alone and in cohorts
python benchmarks/gpu.py speed NAME [SIZES]      env_steps per second of cohorts, summed over members
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
from qohort.runs.learning_curve import RunFigure
from qohort.runs.training import train

assert qohort.__version__

COMMON = ("trainer=gpu", "logger=none", "trainer.progress_bar=false", "callbacks=[none]", "checkpoint.every=10_000_000")
SMALL = ("evaluation.every=10_000_000", "evaluation.episodes=2", "evaluation.max_episode_steps=200")
SHORT = (*SMALL, "budget=1_500", "learning_starts=200", "log_every=500")
MINATAR = ("env=minatar", "env.backend=tensor", "network=minatar")
PONG_DQN = ("experiment=atari/nature_2015", "env.id=ale_py:ALE/Pong-v5", "replay.capacity=10_000", "batch_size=32")
PONG_PQN = ("experiment=atari/pqn", "env.id=ale_py:ALE/Pong-v5")

EXACTNESS = {
    **{
        agent: (f"agent={agent}", "batch_size=33")
        for agent in ("dqn", "c51", "qr_dqn", "iqn", "m_iqn", "noisy", "prioritized", "rainbow", "dqn_lambda")
    },
    "pqn": ("agent=pqn",),
    "stream_q": ("agent=stream_q",),
    "dqn_gymnasium": ("agent=dqn", "env.backend=gymnasium", "batch_size=33"),
    "minatar_dqn": (*MINATAR, "batch_size=33"),
    "minatar_rainbow": (*MINATAR, "agent=rainbow", "batch_size=33"),
    "minatar_pqn": (*MINATAR, "agent=pqn"),
    "pong_dqn": (*PONG_DQN, "batch_size=9"),
    "pong_pqn": (*PONG_PQN, "env.num_envs=8", "train_every=256", "batch_size=64", "gradient_steps=8"),
}
"""What `exactness` checks: overrides, by name."""

LEARNING = ("budget=2_000", "log_every=250", "learning_starts=500")
SPEED = {
    "cartpole": (1_000, (*LEARNING, "experiment=cleanrl/cartpole", "env.backend=tensor")),
    "breakout": (
        1_000,
        (
            *LEARNING,
            *MINATAR,
            *("batch_size=32", "train_every=4", "replay.capacity=2_000", "target_network.every=1_000"),
        ),
    ),
    "pong_dqn": (1_000, (*LEARNING, *PONG_DQN)),
    "pong_pqn": (12_288, (*PONG_PQN, "env.workers=16", "budget=32_768", "log_every=4_096")),
}
"""What `speed` measures, by name: the env_steps at which the clock starts, and overrides."""


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


def exactness(name: str, sizes: list[int]) -> bool:
    """Compare the first seed's fingerprint in cohorts of several sizes; return whether they are all equal."""
    found = {}
    for size in sizes:
        began = time.perf_counter()
        found[size] = run([7, *range(100, 99 + size)], *SHORT, *EXACTNESS[name])[0][7]
        verdict = "equal" if len(set(found.values())) == 1 else "DIFFERENT"
        print(f"{name}, {size} members: {found[size][:16]} {verdict} ({time.perf_counter() - began:.0f} s)", flush=True)
    return len(set(found.values())) == 1


def speed(name: str, sizes: list[int]) -> None:
    """Print env_steps per second, without start-up, for cohorts of several sizes."""
    RunFigure.draw = lambda *_: None  # type: ignore[method-assign]  # what comes after training is not measured
    for size in sizes:
        began = time.perf_counter()
        start, overrides = SPEED[name]
        rows = run(list(range(size)), *SMALL, *overrides)[1]
        timed = [row for row in rows if "env_steps_per_s" in row and row["env_steps"] >= start]
        first, last = timed[0], timed[-1]
        each = (last["env_steps"] - first["env_steps"]) / max(last["wall_s"] - first["wall_s"], 1e-9)
        whole = time.perf_counter() - began
        print(f"{name}, {size} members: {each * size:,.0f} env_steps/s (whole run {whole:.0f} s)", flush=True)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "names":
        print(*EXACTNESS)
        sys.exit()
    sizes = [int(size) for size in arguments[1:]] or [1, 5, 30]
    if command == "speed":
        speed(arguments[0], sizes)
    else:
        sys.exit(0 if exactness(arguments[0], sizes) else 1)
