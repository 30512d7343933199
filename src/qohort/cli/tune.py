"""Tune hyperparameters: qohort tune [key=value ...]. Keys: conf/tune.yaml."""

from __future__ import annotations

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


def _check(config: DictConfig) -> None:
    from qohort.experiments.tuning import check_study

    check_study(config)


@entry_point("tune", check=_check)
def main(config: DictConfig) -> None:
    """Tune."""
    from qohort.experiments.tuning import tune

    tune(config)
