"""Train runs of the ledger again, and compare: qohort reproduce NAME [key=value ...]. Keys: conf/reproduce.yaml."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point, use_bits


@entry_point("reproduce")
def _reproduce(config: DictConfig) -> None:
    """Reproduce."""
    from qohort.report.reproduction import plan, reproduce

    planned = plan(config)
    use_bits([draw.config for draw in planned.draws])
    reproduce(planned)


def main() -> None:
    """Reproduce the ledger that the first word names."""
    for place, word in enumerate(sys.argv[1:], 1):
        if not word.startswith("-") and "=" not in word:
            sys.argv[place] = f"name={word}"
            break
    _reproduce()
