"""Export a trained policy: qohort export [key=value ...]. Keys: conf/export.yaml."""

from __future__ import annotations

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


@entry_point("export")
def main(config: DictConfig) -> None:
    """Export."""
    from qohort.runs.exporting import export

    export(config)
