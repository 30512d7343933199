"""The page of a report: one file with everything in it."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qohort.config.identity import experiment_tree
from qohort.config.messages import as_typed
from qohort.experiments.ablation import Ablation, Arm, config_difference, flat
from qohort.report.figures import NARROW, Chart, draw
from qohort.report.scores import FinishedRun, Scores
from qohort.report.tables import FEWEST, Table
from qohort.runs.manifest import HISTORY


@dataclass(frozen=True)
class Picture:
    """A figure as a page has it: drawn once for wide windows and once for narrow ones."""

    chart: Chart
    wide: str
    narrow: str

    @classmethod
    def of(cls, chart: Chart, wide: bytes) -> Picture:
        """A chart that was drawn wide already."""
        return cls(chart, _data(wide), _data(draw(chart, "png", NARROW)))


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@dataclass(frozen=True)
class Difference:
    """What an arm's configuration has that the other's has not: key, there, here; and in which environments."""

    arm: Arm
    environments: str
    rows: tuple[tuple[str, str, str], ...]


def differences(ablation: Ablation, scores: Scores) -> list[Difference]:
    """The differences of every arm's resolved configuration from that of the arm it is compared with."""
    configs = {(plan.arm.label, plan.environment): plan.config for plan in scores.planned}
    made = []
    for arm in ablation.arms:
        if arm.label == arm.against:
            continue
        by_rows: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
        for environment in ablation.manifest.environments:
            found = config_difference(configs[arm.against, environment], configs[arm.label, environment])
            rows = tuple((key, _value(there), _value(here)) for key, (there, here) in found.items())
            by_rows.setdefault(rows, []).append(environment)
        for rows, environments in by_rows.items():
            made.append(Difference(arm, ", ".join(environments) if len(by_rows) > 1 else "", rows))
    return made


def _value(value: Any) -> str:
    return "–" if value is None else as_typed(value)


def conditions(runs: Sequence[FinishedRun]) -> list[tuple[str, list[tuple[str, int]]]]:
    """What the runs were made with: by key of `manifest.json`, each value with the number of runs that have it."""
    manifests = [flat({key: value for key, value in run.manifest.items() if key not in HISTORY}) for run in runs]
    keys = dict.fromkeys(key for manifest in manifests for key in manifest)
    return [
        (key.removeprefix("packages."), Counter(as_typed(manifest.get(key)) for manifest in manifests).most_common())
        for key in keys
    ]


def page(
    ablation: Ablation,
    scores: Scores,
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    commands: Sequence[str],
    problems: Sequence[str],
) -> str:
    """The page.

    Args:
        ablation: The ablation.
        scores: Its runs.
        tables: The tables.
        pictures: The figures.
        commands: How to make it again.
        problems: What is missing.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qohort.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    runs = [run for some in scores.finished.values() for run in some]
    baseline = ablation.manifest.baseline
    first = next(plan for plan in scores.planned if plan.arm.label == baseline)
    values: Mapping[str, Any] = {
        "ablation": ablation,
        "manifest": ablation.manifest,
        "titles": {arm.label: arm.title for arm in ablation.arms},
        "finished": len(runs),
        "planned": len(scores.planned),
        "told_from": FEWEST,
        "fewest": min(map(len, scores.finished.values())),
        "problems": problems,
        "main": [table for table in tables if not table.key.startswith("columns_")],
        "columns": [table for table in tables if table.key.startswith("columns_")],
        "pictures": pictures,
        "differences": differences(ablation, scores),
        "baseline": [(key, json.dumps(value)) for key, value in flat(experiment_tree(first.config)).items()],
        "baseline_environment": first.environment,
        "conditions": conditions(runs),
        "seconds": (min(run.result["wall_s"] for run in runs), max(run.result["wall_s"] for run in runs)),
        "commands": commands,
    }
    return environment.get_template("report.html.j2").render(values)
