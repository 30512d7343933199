"""Report the results of an ablation: qohort report [key=value ...]. Keys: conf/report.yaml."""

from __future__ import annotations

import re
import sys

from omegaconf import DictConfig

from qohort.cli.entry_point import entry_point


def _check(config: DictConfig) -> None:
    from qohort.report.report import check_report

    check_report(config)


@entry_point("report", check=_check)
def _report(config: DictConfig) -> None:
    """Report."""
    from qohort.report.report import report

    report(config)


def main() -> None:
    """Report."""
    arguments = sys.argv[1:]
    for index, argument in enumerate(arguments):
        if argument == "ablation=null":  # Hydra has no null for a group, so that the ablations named before it go
            arguments[: index + 1] = ["" if one.startswith("ablation=") else one for one in arguments[: index + 1]]
    sys.argv[1:] = [word for argument in arguments if argument for word in _one_choice(argument)]
    _report()


def _one_choice(argument: str) -> list[str]:
    """Return `ablation=[a,b]` as `ablation=a` and `ablations=[b]`, since a group of Hydra has one choice."""
    found = re.fullmatch(r"ablation=\[\s*([\w./-]+)\s*((?:,\s*[\w./-]+\s*)*)\]", argument)
    if found is None:
        return [argument]
    others = re.findall(r"[\w./-]+", found[2])
    return [f"ablation={found[1]}", *([f"ablations=[{','.join(others)}]"] if others else [])]
