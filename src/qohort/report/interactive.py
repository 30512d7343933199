"""The data of the page's interactive figures: every run's curve, and the curve of each arm."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qohort.experiments.ablation import Ablation
from qohort.report.analysis import ACROSS, Curve, Place
from qohort.report.cells import metric_name
from qohort.report.scores import Scores
from qohort.report.style import looks
from qohort.statistics import Array


def interactive(
    ablation: Ablation, scores: Scores, places: Sequence[Place], curves: Mapping[str, Mapping[str, Curve]]
) -> list[dict[str, Any]]:
    """Return what `report.js.j2` draws: for each environment, the arms that are shown, with their runs.

    Args:
        ablation: The ablation.
        scores: The scores of its runs.
        places: The statistics of its arms.
        curves: The curves of each environment, by label of the arm.
    """
    found, show = looks(ablation), ablation.manifest.show
    made = []
    for place in places:
        own = {} if place.name == ACROSS else curves[place.name]
        arms = []
        for one in place.shown:
            label = one.arm.label
            if label not in own:
                continue
            runs = scores.finished[label, place.name]
            arms.append(
                {
                    "name": one.name,
                    "color": found[label].color,
                    "baseline": found[label].baseline,
                    "x": _numbers(own[label].x),
                    "value": _numbers(own[label].band.value),
                    "seeds": [run.plan.config.seed for run in runs],
                    "runs": [_numbers(run.values) for run in runs],
                }
            )
        if arms:
            axes = [show.labels.get(label, label) for label in ("env_steps", metric_name(ablation))]
            key = f"runs_{place.name.replace('/', '_')}"
            thick = "median run" if show.band == "percentiles" else "IQM"
            title = f"Every run on {place.heading}"
            made.append({"key": key, "title": title, "thick": thick, "axes": axes, "arms": arms})
    return made


def _numbers(values: Array) -> list[float | None]:
    """Return numbers of six digits, with None for those that are not finite, which JSON does not have."""
    return [float(f"{value:.6g}") if value - value == 0 else None for value in values.tolist()]


def as_script(data: Any) -> str:
    """Return data as JSON that may stand in a script element."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
