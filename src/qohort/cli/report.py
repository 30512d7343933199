"""Report the results of an ablation: qohort report [key=value ...]. Keys: conf/report.yaml."""

from __future__ import annotations

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


@entry_point("report")
def main(config: DictConfig) -> None:
    """Report."""
    from qohort.report.report import report

    report(config)
