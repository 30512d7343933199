"""Evaluate trained runs: qohort evaluate [key=value ...]. Keys: conf/evaluate.yaml."""

from __future__ import annotations

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


def _check(config: DictConfig) -> None:
    from qohort.runs.evaluations import check_evaluation

    check_evaluation(config)


@entry_point("evaluate", check=_check)
def main(config: DictConfig) -> None:
    """Evaluate."""
    from qohort.runs.evaluations import evaluate

    evaluate(config)
