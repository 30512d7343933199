"""Train a cohort, or a sweep with -m: qohort train [key=value ...]. Keys: conf/train.yaml."""

from __future__ import annotations

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


def _plan(config: DictConfig) -> None:
    from qohort.runs.plan import plan

    plan(config)


@entry_point("train", plan=_plan)
def main(config: DictConfig) -> None:
    """Train."""
    from qohort.runs.training import train

    train(config)
