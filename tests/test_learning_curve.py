"""The figure of a run."""

from pathlib import Path

from qohort.runs.learning_curve import RunFigure


def test_a_figure_shows_nothing_of_the_run_drawn_before_it(tmp_path: Path) -> None:
    rows = [{"env_steps": step, "train/return": -200.0 + step, "eval/return": None} for step in range(1, 40)]
    other = [{"env_steps": 10 * step, "train/return": float(step), "eval/return": 1.5} for step in range(1, 20)]
    figure = RunFigure()
    for name, drawn in {"rows": rows, "other": other, "nothing": []}.items():
        figure.draw(tmp_path / f"{name}.png", drawn, name)
        RunFigure().draw(tmp_path / "afresh.png", drawn, name)
        assert (tmp_path / f"{name}.png").read_bytes() == (tmp_path / "afresh.png").read_bytes()
