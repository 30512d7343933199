"""Verify a report by training some of its runs again: qohort verify [key=value ...]. Keys: conf/verify.yaml."""

from __future__ import annotations

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


@entry_point("verify")
def main(config: DictConfig) -> None:
    """Verify."""
    from qohort.report.verification import verify

    verify(config)
