"""Renders the page of a report: one HTML file that contains its figures."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qohort.config.identity import config_difference, experiment_tree, flat
from qohort.config.messages import format_value
from qohort.experiments.ablation import Ablation, Arm
from qohort.multiple_comparisons import CONFIRMED_LEVEL, LEVEL
from qohort.report.analysis import Place
from qohort.report.cells import Table
from qohort.report.found import FoundRuns
from qohort.report.interactive import as_script
from qohort.report.panels import Chart
from qohort.report.scores import FinishedRun, Scores
from qohort.report.stopping import Stopping
from qohort.report.tables import family
from qohort.runs.manifest import HISTORY
from qohort.statistics import MIN_RUNS

PIXELS = 151
"""Pixels of the page per inch of a figure: one of the usual width is as wide as the page."""


@dataclass(frozen=True)
class Picture:
    """A figure of the page, drawn for wide and for narrow screens as data URLs, and its largest width in pixels."""

    chart: Chart
    wide: str
    narrow: str
    pixels: int

    @classmethod
    def of(cls, chart: Chart, wide: bytes, narrow: bytes, inches: float) -> Picture:
        """Make a picture of a chart from its PNGs and the width of the wide one in inches."""
        return cls(chart, _data(wide), _data(narrow), round(inches * PIXELS))


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@dataclass(frozen=True)
class Difference:
    """The differences between an arm's configuration and that of the arm it is compared with.

    Attributes:
        arm: The arm.
        environments: The environments in which the rows hold; empty for all.
        rows: Key, value in the other arm and value in the arm.
    """

    arm: Arm
    environments: str
    rows: tuple[tuple[str, str, str], ...]


def differences(ablation: Ablation, scores: Scores) -> list[Difference]:
    """Return how each arm's resolved configuration differs from that of the arm it is compared with."""
    configs = {(plan.arm.label, plan.environment): plan.config for plan in scores.planned}
    made = []
    for arm in ablation.arms:
        if arm.label == arm.against:
            continue
        by_rows: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
        for environment in ablation.manifest.environments:
            if not {(arm.against, environment), (arm.label, environment)} <= configs.keys():
                continue  # found runs need not have every arm in every environment
            found = config_difference(configs[arm.against, environment], configs[arm.label, environment])
            rows = tuple((key, _value(there), _value(here)) for key, (there, here) in found.items())
            by_rows.setdefault(rows, []).append(environment)
        for rows, environments in by_rows.items():
            made.append(Difference(arm, ", ".join(environments) if len(by_rows) > 1 else "", rows))
    return made


def _value(value: Any) -> str:
    return "–" if value is None else format_value(value)


def conditions(runs: Sequence[FinishedRun]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Return the software and hardware of the runs.

    Args:
        runs: The runs.

    Returns:
        For each key of `manifest.json`, its values with the number of runs that have each.
    """
    manifests = [flat({key: value for key, value in run.manifest.items() if key not in HISTORY}) for run in runs]
    keys = dict.fromkeys(key for manifest in manifests for key in manifest)
    return [
        (
            key.removeprefix("packages."),
            Counter(format_value(manifest.get(key)) for manifest in manifests).most_common(),
        )
        for key in keys
    ]


def hidden(ablation: Ablation) -> list[str]:
    """Return the titles of the arms that are not shown."""
    shown = ablation.manifest.show.arms
    return [] if shown is None else [arm.title for arm in ablation.arms if arm.label not in shown]


def page(
    ablation: Ablation,
    scores: Scores,
    places: Sequence[Place],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    commands: Sequence[str],
    problems: Sequence[str],
    stopping: Stopping | None,
    interactive: Sequence[Mapping[str, Any]],
    resamples: int,
) -> str:
    """Render the page.

    Args:
        ablation: The ablation.
        scores: The scores of its runs.
        places: The statistics of its arms.
        tables: The tables.
        pictures: The figures.
        commands: The commands that reproduce the report.
        problems: A line for each run that is not counted.
        stopping: How the arms were stopped; None if every arm has all seeds.
        interactive: The data of the interactive figures.
        resamples: Bootstrap resamples.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qohort.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    runs = [run for some in scores.finished.values() for run in some]
    shown = ablation.manifest.baseline or scores.planned[0].arm.label
    first = next(plan for plan in scores.planned if plan.arm.label == shown)
    values: Mapping[str, Any] = {
        "ablation": ablation,
        "manifest": ablation.manifest,
        "titles": {arm.label: arm.title for arm in ablation.arms},
        "found": isinstance(ablation, FoundRuns),
        "external": any(place.external for place in places),
        "finished": len(runs),
        "planned": len(scores.planned),
        "told_from": MIN_RUNS,
        "family": family(places),
        "level": LEVEL,
        "confirmed_level": CONFIRMED_LEVEL,
        "fewest": min(map(len, scores.finished.values())),
        "problems": problems,
        "stopping": stopping,
        "main": [table for table in tables if not table.key.startswith("columns_")],
        "columns": [table for table in tables if table.key.startswith("columns_")],
        "pictures": pictures,
        "differences": differences(ablation, scores),
        "baseline": [(key, json.dumps(value)) for key, value in flat(experiment_tree(first.config)).items()],
        "baseline_title": first.arm.title,
        "baseline_environment": first.environment,
        "conditions": conditions(runs),
        "seconds": (min(run.result["wall_s"] for run in runs), max(run.result["wall_s"] for run in runs)),
        "commands": commands,
        "resamples": resamples,
        "interactive": interactive,
        "data": Markup(as_script(list(interactive))),
        "hidden": hidden(ablation),
    }
    return environment.get_template("report.html.j2").render(values)
