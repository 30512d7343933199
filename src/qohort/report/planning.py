"""The runs that an ablation asks for."""

from __future__ import annotations

import sys
from dataclasses import replace

from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode

from qohort.config.composition import without_hydra
from qohort.config.members import check_config
from qohort.experiments.ablation import Ablation
from qohort.experiments.sweep import fold_ablation
from qohort.report.scores import PlannedRun
from qohort.runs.members import members_of


def plan_runs(ablation: Ablation, loader: ConfigLoader, output_dir: str) -> list[PlannedRun]:
    """Every run that an ablation asks for, in the order of its environments, arms and seeds.

    Args:
        ablation: The ablation.
        loader: Composes configurations.
        output_dir: Where the runs are.

    Raises:
        ConfigError: If a run or an arm is wrong.
    """
    master = loader.load_configuration("train", [], run_mode=RunMode.MULTIRUN)
    planned = []
    for cell, cohorts in fold_ablation(ablation, loader, master, (), sys.maxsize):
        configs = [config for cohort in cohorts for config in check_config(without_hydra(cohort.config))]
        members = members_of([replace(config, output_dir=output_dir) for config in configs])
        planned += [
            PlannedRun(cell.arm, cell.environment, member.config, member.directory.path)
            for member in sorted(members, key=lambda member: member.config.seed)
        ]
    return planned
