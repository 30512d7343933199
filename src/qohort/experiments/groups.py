"""Trains an ablation group by group until every comparison is decided. Each group is a sweep of its own."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from qohort.config.composition import without_hydra
from qohort.config.errors import SweepFailed
from qohort.config.members import check_config
from qohort.experiments.ablation import Ablation, ArmInEnvironment, last_of_each_key
from qohort.experiments.sequential import Cell, Progress, SequentialAblation, describe
from qohort.experiments.sweep import Cohort, fold, fold_ablation, launch
from qohort.runs.directory import RunDirectory
from qohort.runs.members import members_of


def train_until_decided(
    ablation: Ablation,
    loader: ConfigLoader,
    master: DictConfig,
    only: Sequence[str] | None,
    max_members: int,
    launcher: Launcher,
    name: str | None,
) -> list[Sequence[JobReturn]]:
    """Train an ablation group by group. Arms whose runs fail stop, and the others go on.

    Args:
        ablation: The ablation.
        loader: Hydra's configuration loader.
        master: The configuration of the sweep itself.
        only: The keys in which members may differ; None for all that their components declare.
        max_members: Maximum number of members per cohort.
        launcher: Hydra's launcher.
        name: The sweep's name.

    Returns:
        The launcher's results of each group.

    Raises:
        ConfigError: If a run is invalid, or the settings are not those that the ablation was begun with.
        Interrupted: If a signal asked to stop; the same command continues.
        SweepFailed: If a job or a member failed.
    """
    planned = fold_ablation(ablation, loader, master, only, max_members)
    cells = {(cell.arm.label, cell.environment): cell for cell, _ in planned}
    directories = {key: _directories(cohorts) for key, (_, cohorts) in zip(cells, planned, strict=True)}
    sequential = SequentialAblation.of(ablation, directories)
    sequential.begin(overwrite=bool(planned[0][1][0].config.overwrite))
    design = sequential.design
    returns: list[Sequence[JobReturn]] = []
    failures: list[str] = []

    def train(number: int, going_on: Sequence[Cell], seeds: Sequence[int]) -> None:
        title = f"group {number + 1} of {len(design.stages)}"
        print(f"{title}: seeds {seeds[0]} to {seeds[-1]} of {_listed(going_on)}")
        texts = [_with_seeds(cells[cell], seeds) for cell in going_on]
        cohorts = [cohort for own in texts for cohort in fold(own, loader, master, only, max_members)]
        try:
            returns.extend(launch(cohorts, launcher, name, title))
        except SweepFailed as error:
            failures.append(str(error))

    def tell(progress: Progress) -> None:
        for one in progress.decisions:
            print(f"  {describe(one, progress, sequential.margins[one])}", flush=True)

    print(
        f"until=decided: {design.comparisons} {'comparison' if design.comparisons == 1 else 'comparisons'}, at most "
        f"{design.max_seeds} seeds in groups of {design.seeds_per_group}, family-wise error {design.alpha:g}"
    )
    progress = sequential.follow(train, tell)
    runs = sum(map(len, progress.seeds.values()))
    print(
        f"until=decided: {runs} runs, where {design.max_seeds} seeds of every arm are {design.max_seeds * len(cells)}"
    )
    if failures:
        raise SweepFailed("\n".join(failures))
    return returns


def _listed(cells: Sequence[Cell]) -> str:
    """Return arms in words, by environment."""
    environments = dict.fromkeys(environment for _, environment in cells)
    return "; ".join(
        f"{', '.join(arm for arm, other in cells if other == environment)} on {environment}"
        for environment in environments
    )


def _with_seeds(cell: ArmInEnvironment, seeds: Sequence[int]) -> list[str]:
    """Return the overrides of an arm with other seeds."""
    return last_of_each_key([*cell.overrides, f"seed=[{','.join(map(str, seeds))}]"])


def _directories(cohorts: Sequence[Cohort]) -> dict[int, RunDirectory]:
    """Return the run directory of each seed of an arm in an environment."""
    members = [one for cohort in cohorts for one in members_of(check_config(without_hydra(cohort.config)))]
    return {member.config.seed: member.directory for member in members}
