"""The cost of checking what a Gymnasium environment returns, within whole runs of the article's DQN.

python benchmarks/checks.py [MEMBERS [ENV_STEPS]]

In one run, the checks are on and off in turns, 250 env_steps each, on one core. Its CPU time is compared pair by pair.
"""

from __future__ import annotations

import qohort  # isort: skip  # before torch: it fixes the arithmetic

import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir

from qohort.agent.learner import QLearning
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.environments.checked import CheckedEnv, ValueCheck
from qohort.runs.training import train

assert qohort.__version__

TURN, START = 250, 2_000
"""The env_steps of a turn, and those before the first one."""


def unchecked(self: CheckedEnv, action: np.int64) -> Any:
    """Step an environment, and keep its actions, which resuming needs."""
    self.actions.append(int(action))
    observation, reward, terminated, truncated, _ = self.env.step(action)
    return observation, reward, terminated, truncated


def measure(members: int, env_steps: int) -> tuple[list[float], list[float]]:
    """Return the CPU seconds of the turns with and without checks."""
    turns: dict[bool, list[float]] = {True: [], False: []}
    forms = {True: (CheckedEnv.step, ValueCheck.wrong), False: (unchecked, lambda self: [])}
    began: float | None = None
    collect = QLearning.collect

    def in_turns(module: QLearning) -> int:
        nonlocal began
        now = module.progress.env_steps
        if now >= START and now % TURN == 0:
            on = now // TURN % 2 == 0
            if began is not None:
                turns[not on].append(time.process_time() - began)
            for (owner, name), form in zip(((CheckedEnv, "step"), (ValueCheck, "wrong")), forms[on], strict=True):
                setattr(owner, name, form)
            began = time.process_time()
        return collect(module)

    setattr(QLearning, "collect", in_turns)  # noqa: B010 -- a plain assignment to a method is an error of types
    with tempfile.TemporaryDirectory() as directory:
        with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
            seed = f"seed={list(range(members))}".replace(" ", "")
            settings = (
                "experiment=article/dqn",
                "env.backend=gymnasium",
                "trainer.progress_bar=false",
                "log_every=250",
            )
            never = f"evaluation.every={env_steps + 1}"
            config = compose("train", [*settings, never, seed, f"budget={env_steps}", f"output_dir={directory}"])
        with contextlib.redirect_stdout(io.StringIO()):
            train(config)
    return turns[True], turns[False]


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ.setdefault("WANDB_MODE", "offline")
    given = [int(one) for one in sys.argv[1:]]
    members, env_steps = [*given, *(1, 40_000)[len(given) :]]
    on, off = measure(members, env_steps)
    ratios = [one / other for one, other in zip(on, off, strict=False)]
    with_checks, without = (1e6 * statistics.median(seconds) / TURN for seconds in (on, off))
    print(
        f"{members} members, {len(ratios)} pairs: {with_checks:.0f} µs of CPU an env_step with checks, {without:.0f} "
        f"without; ratio {sum(on[: len(ratios)]) / sum(off[: len(ratios)]):.3f} of the sums, "
        f"{statistics.median(ratios):.3f} the median"
    )
