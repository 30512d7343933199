"""What a user sees while a cohort trains: a progress bar, or a line an evaluation where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytorch_lightning as pl
from tqdm import tqdm

if TYPE_CHECKING:
    from qohort.agent.learner import QLearning


class CohortProgress(pl.Callback):
    """Shows env_steps, env_steps a second and the recent return of a cohort.

    In a terminal it is a live bar. Elsewhere it is a line at each evaluation, so that log files stay readable.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        module: QLearning = pl_module  # type: ignore[assignment]
        self._live = sys.stderr.isatty()
        self._evaluated = module.progress.env_steps
        self._start = (time.perf_counter(), module.progress.env_steps)
        self._bar = tqdm(
            total=module.progress.budget,
            initial=module.progress.env_steps,
            unit=" env_steps",
            unit_scale=True,
            disable=not self._live,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} env_steps [{elapsed}<{remaining}] {postfix}",
        )

    def on_env_steps(self, module: QLearning) -> None:
        """Move the bar, or write a line where an evaluation was made."""
        if self._live:
            self._bar.set_postfix_str(self._status(module), refresh=False)
            self._bar.update(module.progress.env_steps - self._bar.n)
        elif module.evaluated_at > self._evaluated:
            self._line(module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar, once the module has made its last evaluation."""
        module: QLearning = pl_module  # type: ignore[assignment]
        if self._live:
            self.on_env_steps(module)
        elif module.evaluated_at > self._evaluated:
            self._line(module)
        self._bar.close()

    def _line(self, module: QLearning) -> None:
        self._evaluated = module.evaluated_at
        print(f"{module.progress.env_steps:,}/{module.progress.budget:,} env_steps, {self._status(module)}", flush=True)

    def _status(self, module: QLearning) -> str:
        then, steps = self._start
        members = len(module.members)
        speed = (module.progress.env_steps - steps) * members / max(time.perf_counter() - then, 1e-9)
        recent = module.episodes.recent
        seen = recent[~np.isnan(recent)]
        parts = [f"{speed:,.0f} env_steps/s" + (f" over {members} members" if members > 1 else "")]
        if seen.size:
            parts.append(f"recent return {seen.mean():.1f}")
        if not np.isnan(module.last_evaluation).any():
            parts.append(f"evaluation {module.last_evaluation.mean():.1f}")
        return ", ".join(parts)
