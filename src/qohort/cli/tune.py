"""Tune hyperparameters: qohort tune [key=value ...]. Keys: conf/tune.yaml."""

from __future__ import annotations

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


@entry_point("tune")
def main(config: DictConfig) -> None:
    """Tune."""
    from qohort.experiments.tuning import tune

    tune(config)
