"""The figure of a run."""

from pathlib import Path

import pytest

from qohort.runs.learning_curve import RunFigure


def test_a_figure_shows_nothing_of_the_run_drawn_before_it(tmp_path: Path) -> None:
    rows = [{"env_steps": step, "train/return": -200.0 + step, "eval/return": None} for step in range(1, 40)]
    other = [{"env_steps": 10 * step, "train/return": float(step), "eval/return": 1.5} for step in range(1, 20)]
    figure = RunFigure()
    for name, drawn in {"rows": rows, "other": other, "nothing": []}.items():
        figure.draw(tmp_path / f"{name}.png", drawn, name)
        RunFigure().draw(tmp_path / "afresh.png", drawn, name)
        assert (tmp_path / f"{name}.png").read_bytes() == (tmp_path / "afresh.png").read_bytes()


@pytest.mark.parametrize("low", [-99_999.0, -1e5, -2e7, -187.25, -0.00125, -10_000.5])
def test_labels_of_any_returns_fit_into_the_figure(tmp_path: Path, low: float) -> None:
    figure = RunFigure()
    figure.draw(tmp_path / "it.png", [{"env_steps": 1, "train/return": low}, {"env_steps": 9, "train/return": 0}], "it")
    axes = figure._figure.axes[0]
    assert axes.get_tightbbox().x0 >= 0
    assert axes.get_tightbbox().x1 <= figure._figure.bbox.x1
