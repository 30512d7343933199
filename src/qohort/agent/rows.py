"""The metric rows of a cohort, and the members that have failed."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from qohort.agent.evaluation import EpisodeScores
from qohort.agent.exploration import Exploration
from qohort.agent.results import UpdateResult
from qohort.cohort.program import Compiler
from qohort.cohort.schedules import Progress
from qohort.cohort.state import Stateful
from qohort.environments.checked import EnvironmentFailure
from qohort.environments.episodes import Episode

COUNTERS = ("env_steps", "gradient_steps", "episodes", "wall_s")
"""The columns that every metric row has."""

Fail = Callable[[int, int, str, Mapping[str, Any]], None]
"""Called when a member fails, with its index, the env_steps, the reason in one line, and what else is known (the seed
and the actions of the episode in which its environment failed)."""


class Recorder(Stateful, Protocol):
    """Writes the metrics of each member."""

    def row(self, member: int, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Write one metric row of one member."""

    def speed(self, env_steps: int, compiling_s: float) -> float:
        """Return the env_steps per second of each member since the last call, without what compiling took."""


class Rows:
    """Writes the metric rows of a cohort, and gives up members that have failed: they get no more rows.

    Args:
        env_id: The Gymnasium id of the environment, for messages.
        space: The observation space, for messages.
        recorder: Writes the rows.
        progress: The cohort's progress.
        compiler: The compiler of its programs.
        fail: Called when a member fails.
    """

    def __init__(
        self,
        env_id: str,
        space: spaces.Space[Any],
        recorder: Recorder,
        progress: Progress,
        compiler: Compiler,
        fail: Fail,
    ) -> None:
        self._env_id, self._space = env_id, space
        self._recorder, self._progress, self._compiler, self._fail = recorder, progress, compiler, fail
        self._logged: dict[str, list[float]] = {}
        self._found: set[str] = set()  # the info metrics that were found, or reported
        self.failed: set[int] = set()
        """The members that have failed."""

    def write(self, m: int, metrics: Mapping[str, float]) -> None:
        """Write a row, unless the member has failed."""
        if m not in self.failed:
            self._recorder.row(m, self._progress, metrics)

    def log(self, name: str, value: Any, at_once: bool) -> None:
        """Write a metric to the rows of every member.

        Args:
            name: The name of the metric.
            value: One number for all members, or one per member as an array or tensor `[M]`.
            at_once: Whether it has a row of its own. If not, it is part of the next row of an update.

        Raises:
            ValueError: If the name is one of `COUNTERS`.
        """
        if name in COUNTERS:
            raise ValueError(f"log({name!r}): every row has this already; choose another name")
        members = len(self._progress.episodes)
        values = torch.as_tensor(value).detach().cpu().double().flatten().expand(members).tolist()
        if not at_once:
            self._logged[name] = values
            return
        for m, of_member in enumerate(values):
            self.write(m, {name: of_member})

    def flush(self) -> None:
        """Write the metrics that were logged since the last row of an update."""
        logged, self._logged = self._logged, {}
        for m in range(len(self._progress.episodes) if logged else 0):
            self.write(m, {name: values[m] for name, values in logged.items()})

    def episode(self, episode: Episode) -> None:
        """Write the row of a training episode, and count it."""
        self._progress.episodes[episode.member] += 1
        named = {f"train/{name}": value for name, value in episode.metrics.items()}
        self._found.update(episode.metrics)
        self.write(episode.member, {"train/return": episode.score, "train/length": episode.length, **named})

    def evaluation(self, scores: EpisodeScores) -> None:
        """Write the rows of an evaluation, and report the `info_metrics` that no episode had so far.

        A named number is the mean over the episodes that have it.
        """
        for m, mean in enumerate(scores.returns.mean(1).tolist()):
            metrics = {"eval/return": mean, "eval/length": float(scores.lengths[m].mean())}
            for name, values in scores.metrics.items():
                present = values[m][~np.isnan(values[m])]
                if len(present):
                    self._found.add(name)
                    metrics[f"eval/{name}"] = float(present.mean())
            self.write(m, metrics)
        for name in sorted(scores.metrics.keys() - self._found):
            self._found.add(name)
            print(
                f"qohort: info_metrics: the info of env.id={self._env_id} had no number {name!r} at the end of any "
                f"episode so far; its numbers are {', '.join(scores.numbers) or 'none'}",
                file=sys.stderr,
            )

    def update(self, result: UpdateResult, exploration: Exploration) -> None:
        """Write the rows of an update, and give up the members that have diverged."""
        logged, self._logged = self._logged, {}
        parameter = exploration.parameter(self._progress)
        speed = self._recorder.speed(self._progress.env_steps, self._compiler.seconds)
        columns = (result.loss.tolist(), result.q_mean.tolist(), result.grad_norm.tolist(), parameter.tolist())
        for m, (loss, q_mean, grad_norm, value) in enumerate(zip(*columns, strict=True)):
            if m not in self.failed and not (math.isfinite(loss) and math.isfinite(q_mean)):
                self.give_up(m, f"diverged: loss {loss}, mean Q {q_mean}")
            metrics = {
                "train/loss": loss,
                "train/q_mean": q_mean,
                "train/grad_norm": grad_norm,
                f"train/{exploration.name}": value,
                "env_steps_per_s": speed,
            }
            self.write(m, {**metrics, **{name: values[m] for name, values in logged.items() if name not in metrics}})

    def give_up(self, m: int, reason: str, details: Mapping[str, Any] | None = None) -> None:
        """Mark a member as failed."""
        self.failed.add(m)
        self._fail(m, self._progress.env_steps, reason, details or {})

    def give_up_environment(self, m: int, failure: EnvironmentFailure, where: Mapping[str, Any]) -> None:
        """Mark a member as failed because of its environment.

        Args:
            m: The index of the member.
            failure: The failure.
            where: What is known of the episode besides its seed and actions.
        """
        episode = {**where, "seed": failure.seed, "actions": failure.actions}
        details = {"episode": episode} | ({"traceback": failure.trace} if failure.trace else {})
        at = "of an evaluation" if "evaluation" in where else "of training"
        reason = f"env.id={self._env_id}: {failure.reason}, at step {len(failure.actions)} of an episode {at}"
        self.give_up(m, reason, details)

    def give_up_diverged(self, parameters: Mapping[str, Tensor]) -> None:
        """Mark the members whose parameters `[M, ...]` are not finite as failed."""
        finite = torch.stack([one.isfinite().flatten(1).all(1) for one in parameters.values()]).all(0)
        for m, is_finite in enumerate(finite.tolist()):
            if not is_finite and m not in self.failed:
                self.give_up(m, "diverged: its weights are not finite")

    def report_beyond_bounds(self, reason: str | None) -> None:
        """Print what was beyond the bounds of the observation space, if anything was."""
        if reason is not None:
            print(
                f"qohort: env.id={self._env_id} returned an observation with {reason}, which is beyond its space "
                f"{self._space}; training goes on, since floats are used as they are",
                file=sys.stderr,
            )
