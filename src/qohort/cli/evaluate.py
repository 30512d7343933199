"""Evaluate trained runs: qohort evaluate [key=value ...]. Keys: conf/evaluate.yaml."""

from __future__ import annotations

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


@entry_point("evaluate")
def main(config: DictConfig) -> None:
    """Evaluate."""
    from qohort.runs.evaluations import evaluate

    evaluate(config)
