"""Prints what a sweep would train, without training it."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from qohort.config.composition import without_hydra
from qohort.config.errors import ConfigError
from qohort.config.members import check_config
from qohort.config.messages import nearest
from qohort.experiments.sweep import Cohort
from qohort.runs.checking import check_jobs
from qohort.runs.members import members_of
from qohort.runs.plan import print_plan

SHOWN = ("plan", "job", "resolved")
"""What `show` can print."""


def show(cohorts: Sequence[Cohort], what: str) -> list[Sequence[JobReturn]]:
    """Print what a sweep would train, after the checks that it would make. No job is launched.

    Args:
        cohorts: The jobs.
        what: `plan` for the directories and the state of the runs, `job` for the configuration of each job, `resolved`
            for the same with interpolations resolved.

    Returns:
        A list without results.

    Raises:
        ConfigError: If a cohort's configuration or `what` is invalid.
    """
    if what not in SHOWN:
        raise ConfigError(f"hydra.sweeper.show={what} is not one of the choices: {nearest(what, SHOWN)}")
    planned = [members_of(check_config(without_hydra(cohort.config))) for cohort in cohorts]
    check_jobs([some[0].config for some in planned])
    if what == "plan":
        print_plan(planned)
        return [[]]
    for number, (cohort, some) in enumerate(zip(cohorts, planned, strict=True)):
        print(f"---\n# {number}: {some[0].directory.path.parent}")
        print(OmegaConf.to_yaml(without_hydra(cohort.config), resolve=what == "resolved"), end="", flush=True)
    return [[]]
