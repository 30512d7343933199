"""The sweeper of `conf/train.yaml`, which calls `qohort.experiments.sweep`.

Hydra imports this file at every start, so that slow imports are inside the methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class CohortSweeper(Sweeper):
    """Expands a sweep with Hydra's grammar and gives the launcher one job per cohort.

    Args:
        max_members: Maximum number of members per cohort.
        foldable: Keys, besides the seed, in which the members of a cohort may differ; None for all that their
            components declare.
        params: A sweep defined in a configuration: values by key, as on the command line.
        show: What to print instead of launching the jobs, see `qohort.experiments.showing.show`; None to launch them.
    """

    def __init__(
        self,
        max_members: int,
        foldable: Sequence[str] | None = None,
        params: dict[str, Any] | None = None,
        show: str | None = None,
    ) -> None:
        self._max_members, self._foldable, self._params, self._show = max_members, foldable, params or {}, show

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Instantiate the launcher."""
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Fold the sweep into cohorts, print the plan and launch the jobs."""
        from qohort.experiments.ablation import ablations_in
        from qohort.experiments.groups import train_until_decided
        from qohort.experiments.showing import show
        from qohort.experiments.sweep import fold, fold_ablation, launch, sweep_name

        assert self.hydra_context is not None
        assert self.config is not None
        assert self.launcher is not None
        loader, master = self.hydra_context.config_loader, self.config
        overrides = [f"{key}={value}" for key, value in self._params.items()] + arguments
        limits, name = (self._foldable, self._max_members), sweep_name(overrides)
        ablations = ablations_in(overrides, loader)
        at_once = [ablation for ablation in ablations if ablation.manifest.until != "decided" or self._show is not None]
        cohorts = (
            [
                cohort
                for ablation in at_once
                for _, some in fold_ablation(ablation, loader, master, *limits)
                for cohort in some
            ]
            if ablations
            else fold(overrides, loader, master, *limits)
        )
        if self._show is not None:  # of an ablation until=decided, all that it may come to
            return show(cohorts, self._show)
        returns = launch(cohorts, self.launcher, name) if cohorts else []
        for ablation in ablations:
            if ablation not in at_once:
                returns += train_until_decided(ablation, loader, master, *limits, self.launcher, name)
        return returns
