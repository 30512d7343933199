"""Shows the progress of a cohort: a progress bar, or one line per evaluation without a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytorch_lightning as pl
from tqdm import tqdm

from qohort.agent.callbacks import CohortCallback, Learner
from qohort.runs.directory import RunDirectory
from qohort.runs.interruption import SWEEP
from qohort.runs.sweep_display import EVERY, display_directory, end_progress, write_progress

SHORT_RUN = 5_000
"""A budget up to which compiling takes longer than training, in env_steps."""
BAR = 46
"""The columns that a bar takes beside its status: percentage, a short bar, counts and times."""


class CohortProgress(CohortCallback):
    """Shows the recent return, the last evaluation and the speed of a cohort.

    In a terminal it is a progress bar. Elsewhere it prints one line per evaluation, so that log files stay readable.
    Speed and time left do not count what compiling took. The speed is that of each member, as in `metrics.jsonl`.
    """

    by_rounds = True

    def __init__(self) -> None:
        self._display: Path | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        module = cast(Learner, pl_module)
        self._live = sys.stderr.isatty()
        self._display, self._displayed = display_directory(), 0.0
        self._name = ""
        if os.environ.get(SWEEP):
            own = RunDirectory.of(module.members[0]).path.parent
            self._name = f"{own.parent.name}/{own.name}"
        self._budget = module.progress.budget
        self._evaluated = self._seen = module.progress.env_steps
        self._compiled_s = module.compiler.seconds
        self._start = (time.perf_counter() - self._compiled_s, module.progress.env_steps)
        self._bar = tqdm(
            total=module.progress.budget,
            initial=module.progress.env_steps,
            unit_scale=True,
            disable=not self._live,
            dynamic_ncols=True,
            smoothing=0,  # the time left by the mean speed, of which compiling is no part
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
        )
        self._told = False
        module.compiler.on_start = self._compiling
        module.compiler.on_end = lambda: self._compiled(module)

    def _compiling(self, name: str) -> None:
        """Say that a program is compiled; without a terminal only once."""
        if self._live:
            self._bar.set_postfix_str(f"compiling {name}", refresh=True)
        elif self._display is not None:
            write_progress(self._display, self._name, self._bar.n / self._budget, f"compiling {name}")
        elif not self._told:
            print("compiling ...", flush=True)
        if not self._told and self._budget <= SHORT_RUN:
            self._bar.write("so short a run is faster without compiling: compile=none, or experiment=debug")
        self._told = True

    def _compiled(self, module: Learner) -> None:
        """Count the time left without what compiling took."""
        if self._live:
            self._bar.start_t += module.compiler.seconds - self._compiled_s
            self._compiled_s = module.compiler.seconds
            self._show(module, refresh=True)

    def on_env_step(self, trainer: pl.Trainer, module: Learner) -> None:
        """Update the bar every 100 env_steps, or print a line if there was an evaluation."""
        if module.progress.env_steps - self._seen >= 100:
            self._seen = module.progress.env_steps
            self._update(module)

    def _update(self, module: Learner) -> None:
        if self._live:
            self._show(module, refresh=False)
            self._bar.update(module.progress.env_steps - self._bar.n)
        elif self._display is not None:
            self._write(self._display, module)
        elif module.evaluated_at > self._evaluated:
            self._print_line(module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar after the module's last evaluation."""
        module = cast(Learner, pl_module)
        self._update(module)
        if self._live:
            self._show(module, refresh=True)
        self._bar.close()
        if self._display is not None:
            end_progress(self._display)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the display of a sweep."""
        if self._display is not None:
            end_progress(self._display)

    def _write(self, display: Path, module: Learner) -> None:
        """Write the progress for the display of a sweep, twice a second."""
        if time.monotonic() - self._displayed < EVERY:
            return
        self._displayed = time.monotonic()
        steps = module.progress.env_steps
        words = fitting(self._status(module), 0, drop=False)
        write_progress(display, self._name, steps / self._budget, words)

    def _print_line(self, module: Learner) -> None:
        self._evaluated = module.evaluated_at
        before = module.evaluated_at < module.progress.env_steps
        status = ", ".join(self._status(module, f" at {module.evaluated_at:,}" if before else ""))
        name = f"{self._name}: " if self._name else ""
        print(f"{name}{module.progress.env_steps:,}/{module.progress.budget:,} env_steps, {status}", flush=True)

    def _show(self, module: Learner, refresh: bool) -> None:
        self._bar.set_postfix_str(fitting(self._status(module), _columns() - BAR), refresh=refresh)

    def _status(self, module: Learner, when: str = "") -> list[str]:
        """Return the parts of the status, the most important first.

        Args:
            module: The module.
            when: Text behind the evaluation, such as its env_steps, which may be fewer than the current ones.
        """
        then, steps = self._start
        members = len(module.members)
        seconds = time.perf_counter() - module.compiler.seconds - then
        speed = (module.progress.env_steps - steps) / max(seconds, 1e-9)
        recent = module.recent_returns
        seen = recent[~np.isnan(recent)]
        parts = [f"recent return {seen.mean():.1f}"] if seen.size else []
        if not np.isnan(module.last_evaluation).any():
            parts.append(f"evaluation {module.last_evaluation.mean():.1f}{when}")
        return [*parts, f"{speed:,.0f} env_steps/s" + (f" of each of {members} members" if members > 1 else "")]


SHORT = (
    *(("recent return", "return"), ("evaluation", "eval"), (" env_steps/s", "/s")),
    *((" of each of ", " × "), (" members", "")),
)
"""The words of a status, and the shorter ones for a narrow terminal."""


def fitting(parts: Sequence[str], columns: int, drop: bool = True) -> str:
    """Return a status in at most so many columns: with short words, or if `drop`, without its last parts."""
    text = ", ".join(parts)
    if len(text) > columns:
        for word, short in SHORT:
            parts = [part.replace(word, short) for part in parts]
        while len(text := ", ".join(parts)) > columns and len(parts) > 1 and drop:
            parts = parts[:-1]
    return text


def _columns() -> int:
    """Return the width of the terminal."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
