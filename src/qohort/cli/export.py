"""Export a trained policy: qohort export [key=value ...]. Keys: conf/export.yaml."""

from __future__ import annotations

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


def _check(config: DictConfig) -> None:
    from qohort.runs.exporting import check_export

    check_export(config)


@entry_point("export", check=_check)
def main(config: DictConfig) -> None:
    """Export."""
    from qohort.runs.exporting import export

    export(config)
