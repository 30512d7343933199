"""Shows the progress of a cohort: a progress bar, or one line per evaluation without a terminal."""

from __future__ import annotations

import sys
import time
from typing import cast

import numpy as np
import pytorch_lightning as pl
from tqdm import tqdm

from qohort.agent.callbacks import CohortCallback, Learner


class CohortProgress(CohortCallback):
    """Shows env_steps, env_steps per second and the recent return of a cohort.

    In a terminal it is a progress bar. Elsewhere it prints one line per evaluation, so that log files stay readable.
    """

    by_rounds = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        module = cast(Learner, pl_module)
        self._live = sys.stderr.isatty()
        self._evaluated = self._seen = module.progress.env_steps
        self._start = (time.perf_counter() - module.compiler.seconds, module.progress.env_steps)
        self._bar = tqdm(
            total=module.progress.budget,
            initial=module.progress.env_steps,
            unit=" env_steps",
            unit_scale=True,
            disable=not self._live,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} env_steps [{elapsed}<{remaining}] {postfix}",
        )
        self._told = False
        module.compiler.on_start = self._compiling
        module.compiler.on_end = lambda: self._compiled(module)

    def _compiling(self, name: str) -> None:
        """Say that a program is compiled; without a terminal only once."""
        self._began = time.perf_counter()
        if self._live:
            self._bar.set_postfix_str(f"compiling {name}", refresh=True)
        elif not self._told:
            print("compiling ...", flush=True)
        self._told = True

    def _compiled(self, module: Learner) -> None:
        """Count the time left without what compiling took."""
        if self._live:
            self._bar.start_t += time.perf_counter() - self._began
            self._bar.set_postfix_str(self._status(module), refresh=True)

    def on_env_step(self, trainer: pl.Trainer, module: Learner) -> None:
        """Update the bar every 100 env_steps, or print a line if there was an evaluation."""
        if module.progress.env_steps - self._seen >= 100:
            self._seen = module.progress.env_steps
            self._update(module)

    def _update(self, module: Learner) -> None:
        if self._live:
            self._bar.set_postfix_str(self._status(module), refresh=False)
            self._bar.update(module.progress.env_steps - self._bar.n)
        elif module.evaluated_at > self._evaluated:
            self._print_line(module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar after the module's last evaluation."""
        module = cast(Learner, pl_module)
        self._update(module)
        self._bar.close()

    def _print_line(self, module: Learner) -> None:
        self._evaluated = module.evaluated_at
        print(f"{module.progress.env_steps:,}/{module.progress.budget:,} env_steps, {self._status(module)}", flush=True)

    def _status(self, module: Learner) -> str:
        then, steps = self._start
        members = len(module.members)
        seconds = time.perf_counter() - module.compiler.seconds - then
        speed = (module.progress.env_steps - steps) * members / max(seconds, 1e-9)
        recent = module.recent_returns
        seen = recent[~np.isnan(recent)]
        parts = [f"{speed:,.0f} env_steps/s" + (f" over {members} members" if members > 1 else "")]
        if seen.size:
            parts.append(f"recent return {seen.mean():.1f}")
        if not np.isnan(module.last_evaluation).any():
            parts.append(f"evaluation {module.last_evaluation.mean():.1f}")
        return ", ".join(parts)
