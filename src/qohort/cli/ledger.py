"""Write the ledger of finished runs: qohort ledger name=NAME [key=value ...]. Keys: conf/ledger.yaml."""

from __future__ import annotations

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


@entry_point("ledger")
def main(config: DictConfig) -> None:
    """Write it."""
    from qohort.report.recording import record

    record(config)
