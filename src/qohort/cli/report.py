"""Report the results of an ablation: qohort report [key=value ...]. Keys: conf/report.yaml."""

from __future__ import annotations

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


def _check(config: DictConfig) -> None:
    from qohort.report.report import check_report

    check_report(config)


@entry_point("report", check=_check)
def main(config: DictConfig) -> None:
    """Report."""
    from qohort.report.report import report

    report(config)
