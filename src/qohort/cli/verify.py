"""Verify a report by training some of its runs again: qohort verify [key=value ...]. Keys: conf/verify.yaml."""

from __future__ import annotations

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


def _check(config: DictConfig) -> None:
    from qohort.report.verification import check_verification

    check_verification(config)


@entry_point("verify", check=_check)
def main(config: DictConfig) -> None:
    """Verify."""
    from qohort.report.verification import verify

    verify(config)
