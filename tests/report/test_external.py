"""Published results: what a file of them may hold, what is refused, and the file of this repository."""

from pathlib import Path

import pytest

from qohort.config.errors import ConfigError
from qohort.report.analysis import Place
from qohort.report.cells import Cell, Table, latex, markdown
from qohort.report.charts import _legend, _lines, _with_external
from qohort.report.external import ExternalResult, by_environment, read_external
from qohort.report.panels import PUBLISHED, Forest, Row
from qohort.statistics import Estimate

HEADER = "name,environment,mean,std,low,high,n,env_steps,source\n"
GOOD = "DQN,CartPole-v1,488.69,16.11,,,3,500000,a page\n"
RESULT = ExternalResult("DQN", "CartPole-v1", 488.69, 16.11, 3, 500_000, "a page")


def written(directory, text, name="rows.csv"):
    file = directory / name
    file.write_text(text)
    return file


def test_a_row_has_a_standard_deviation_or_an_interval(tmp_path):
    text = HEADER + GOOD + "C51,CartPole-v1,481.2,,460,499.5,3,500000,a page\n"
    first, second = read_external(written(tmp_path, text))
    assert first == RESULT
    assert first.estimate == pytest.approx((488.69, 472.58, 504.80))
    assert first.spread_text(1) == "± 16.1"
    assert first.note == "DQN: published, n=3, 500,000 env_steps, from a page"
    assert second.estimate == (481.2, 460, 499.5)
    assert second.spread_text(1) == "[460.0, 499.5]"


def test_yaml_and_csv_are_the_same(tmp_path):
    text = (
        "- {name: DQN, environment: CartPole-v1, mean: 488.69, std: 16.11, n: 3, env_steps: 500_000, source: a page}\n"
    )
    assert read_external(written(tmp_path, text, "rows.yaml")) == [RESULT]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("DQN,CartPole-v1,many,1,,,3,1,a page", "mean=many is not a finite number"),
        ("DQN,CartPole-v1,nan,1,,,3,1,a page", "mean=nan is not a finite number"),
        ("DQN,CartPole-v1,4,-1,,,3,1,a page", "std=-1 is out of range: it must be at least 0"),
        ("DQN,CartPole-v1,4,1,3,5,3,1,a page", "std and low and high given: give either std, or both low and high"),
        ("DQN,CartPole-v1,4,,3,,3,1,a page", "low given: give either std, or both low and high"),
        ("DQN,CartPole-v1,4,,,,3,1,a page", "no spread given: give either std, or both low and high"),
        ("DQN,CartPole-v1,4,,5,6,3,1,a page", "mean=4 is not between low=5 and high=6"),
        ("DQN,CartPole-v1,4,1,,,0,1,a page", "n=0 is not a positive integer"),
        ("DQN,CartPole-v1,4,1,,,2.5,1,a page", "n=2.5 is not a positive integer"),
        ("DQN,CartPole-v1,4,1,,,3,,a page", "env_steps is missing"),
        ("DQN,CartPole-v1,4,1,,,3,1", "source is missing"),
        ("DQN,CartPole-v1,4,1,,,3,1,a page, of theirs", "there are more cells than columns: quote a cell"),
        (GOOD.strip(), "name=DQN is there twice for CartPole-v1: give each its own name"),
    ],
)
def test_a_bad_row_is_named_by_file_and_number(tmp_path, row, message):
    file = written(tmp_path, HEADER + GOOD + row + "\n")
    with pytest.raises(ConfigError) as raised:
        read_external(file)
    assert str(raised.value).startswith(f"{file}, row 2: {message}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.csv", "", "has no rows"),
        ("rows.csv", HEADER, "has no rows"),
        ("rows.csv", "name,meen\nDQN,4\n", "row 1: meen is not a column: did you mean mean?"),
        ("rows.yaml", "name: DQN\n", "has no rows"),
        ("rows.yaml", "[DQN]\n", "row 1: DQN is not a row"),
        ("rows.yaml", "[DQN\n", "cannot be read"),
        ("rows.txt", "", "is not a .csv or .yaml file"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, name, text, message):
    with pytest.raises(ConfigError) as raised:
        read_external(written(tmp_path, text, name))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError, match=r"external=nowhere\.csv cannot be read: .*No such file"):
        read_external(Path("nowhere.csv"))


def test_environments_are_named_as_in_the_report_or_as_in_gymnasium():
    results = [
        RESULT,
        ExternalResult("DQN", "breakout", 9, 1, 3, 5_000_000, "a page"),
        ExternalResult("C51", "MinAtar/Breakout-v1", 9, 1, 3, 5_000_000, "a page"),
    ]
    places = [("cartpole", "CartPole-v1"), ("acrobot", "Acrobot-v1"), ("breakout", "MinAtar/Breakout-v1")]
    found = by_environment(results, places, Path("rows.csv"))
    assert found == {"cartpole": (RESULT,), "breakout": tuple(results[1:])}
    with pytest.raises(ConfigError, match="no row of an environment of this report: its rows are of CartPole-v1"):
        by_environment([RESULT], places[1:], Path("rows.csv"))


def test_figures_have_a_row_and_a_line_for_each():
    places = [Place("cartpole", ("cartpole",), (), (RESULT,)), Place("acrobot", ("acrobot",), ())]
    own = Row("mine", Estimate(1.0, 0.5, 1.5), 0)
    panels = _with_external(places, [Forest(place.name, "return", [own], None) for place in places])
    assert panels[0].rows == [own, Row("DQN (published)", RESULT.estimate, PUBLISHED)]
    assert panels[1].rows == [own, Row("DQN (published)", None, PUBLISHED)]
    assert _lines(places[0].external) == (("a", 488.69),)
    assert "published means at the end of training, a DQN (n=3, 500,000 env_steps)" in _legend(places[0].external)
    assert _legend(()) == ""


def test_notes_are_below_the_table():
    table = Table("key", "Title", ("arm", "x"), ((Cell("a"), Cell("1 ± 2")),), ("50% of a_b",))
    assert markdown(table) == "**Title**\n\n| arm | x |\n|---|---|\n| a | 1 ± 2 |\n\n50% of a_b\n"
    text = latex(table)
    assert r"1 $\pm$ 2" in text
    assert text.index(r"\end{tabular}") < text.index(r"50\% of a\_b") < text.index(r"\end{table}")


def test_the_published_results_of_this_repository_can_be_read():
    results = read_external(Path(__file__).parents[2] / "results" / "published.csv")
    assert len(results) == 15
    assert {one.environment for one in results} == {"CartPole-v1", "Acrobot-v1", "MountainCar-v0"}
    (cleanrl,) = [one for one in results if (one.name, one.environment) == ("CleanRL DQN", "CartPole-v1")]
    assert (cleanrl.mean, cleanrl.spread, cleanrl.n, cleanrl.env_steps) == (488.69, 16.11, 3, 500_000)
