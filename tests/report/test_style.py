"""How a report looks: what is chosen where, the colours, where labels go, and the statistics that figures show."""

import itertools

import matplotlib.style
import numpy as np
import pytest
import yaml

from qohort.cli.report import _one_choice
from qohort.config.errors import ConfigError
from qohort.experiments.presentation import Show
from qohort.report.cells import Cell, Table, latex, with_columns
from qohort.report.figures import _beeswarm, _ink, _luminance, spread
from qohort.report.interactive import _numbers, as_script
from qohort.report.style import BASELINE, PALETTE, chosen, rc_params
from qohort.report.variation import run_percentiles, run_range

MANIFEST = Show("final", "eval/return", 5, ("scores", "curves"), titles={"dqn": "DQN", "c51": "C51"}, width=6.0)


def test_the_command_line_counts_more_than_the_file_and_the_file_more_than_the_manifest(tmp_path):
    file = tmp_path / "style.yaml"
    file.write_text(yaml.safe_dump({"width": 5, "band": "range", "titles": {"dqn": "Deep Q"}}))
    show = chosen(MANIFEST, str(file), {"band": "percentiles", "titles": None, "score": "auc"})
    assert show.width == 5.0
    assert show.band == "percentiles"
    assert show.titles == {"dqn": "Deep Q", "c51": "C51"}
    assert (show.score, show.last, show.figures) == ("auc", 5, ["scores", "curves"])
    assert chosen(MANIFEST, None, {}).titles == MANIFEST.titles


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"figures": ["curve"]}, "did you mean curves"),
        ({"colors": {"dqn": "blu"}}, "show.colors.dqn=blu is not a colour"),
        ({"columns": ["p_hol"]}, "show.columns: p_hol is not one of the choices: did you mean p_holm?"),
        ({"score": "bets"}, "show.score=bets is not one of the choices: did you mean best?"),
        ({"metric": "train/loss"}, "show.metric=train/loss"),
        ({"width": 0}, "show.width=0 is out of range"),
        ({"band": "sd"}, "show.band=sd is not one of the choices"),
        ({"matplotlib": "ggplo"}, "show.matplotlib=ggplo is not a file or a style of matplotlib: did you mean ggplot?"),
        ({"widht": 3}, "unknown key show.widht=3: did you mean show.width?"),
    ],
)
def test_mistakes_name_the_key_and_what_would_be_right(given, message):
    with pytest.raises(ConfigError) as error:
        chosen(MANIFEST, None, given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("widht: 3", "has an unknown key widht: did you mean width?"), ("- 1", "is not a group"), ("a: [", "be read")],
)
def test_mistakes_in_a_file(tmp_path, text, message):
    file = tmp_path / "style.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"style={file} .*") as error:
        chosen(MANIFEST, str(file), {})
    assert message in str(error.value)


def test_a_style_of_matplotlib_is_a_file_or_a_name(tmp_path):
    file = tmp_path / "paper.mplstyle"
    file.write_text("font.size: 11\n")
    assert rc_params(chosen(MANIFEST, None, {"matplotlib": str(file)})) == {"font.size": 11.0}
    assert rc_params(chosen(MANIFEST, None, {"matplotlib": "ggplot"})) == dict(matplotlib.style.library["ggplot"])
    assert rc_params(MANIFEST) == {}


# Machado, Oliveira and Fernandes (2009), severity 1: what people without red or green cones see, in linear RGB.
EYES = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}


def lab(color, eyes):
    """The colour in CIELAB, whose distances are about as we see them."""
    rgb = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(np.array(eyes) @ linear, 0, 1) / np.array([0.9505, 1, 1.089])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", EYES)
def test_ten_arms_have_colours_that_colour_blind_readers_can_tell_apart(eyes):
    colors = [BASELINE, *PALETTE]
    distances = {
        pair: np.linalg.norm(lab(pair[0], EYES[eyes]) - lab(pair[1], EYES[eyes]))
        for pair in itertools.combinations(colors, 2)
    }
    assert len(set(colors)) == 10
    assert min(distances.values()) > 15, min(distances, key=distances.get)  # 2.3 is just noticeable


@pytest.mark.parametrize("color", PALETTE)
def test_names_of_arms_can_be_read(color):
    assert 1.05 / (_luminance(np.array(_ink(color))) + 0.05) >= 4.5


def test_labels_do_not_cover_each_other_and_stay_where_they_can():
    assert spread([0, 50, 100], 10, 0, 100) == [0, 50, 100]
    # Three labels at one place: one stays, the others move up and down by a height.
    assert spread([50, 50, 50], 10, 0, 100) == [40, 50, 60]
    # Two blocks that touch after they were spread become one around their mean: 34, 44, 54, 64 has the mean 49.
    assert spread([44, 44, 54, 54], 10, 0, 100) == [34, 44, 54, 64]
    assert spread([0, 0], 10, 0, 100) == [0, 10]
    assert spread([100, 100], 10, 0, 100) == [90, 100]
    places = spread(sorted(np.random.default_rng(0).uniform(0, 100, 10)), 8, 0, 100)
    assert min(np.diff(places)) >= 8 - 1e-9
    assert min(places) >= 0
    assert max(places) <= 100


def test_points_of_equal_scores_are_apart():
    moved = _beeswarm(np.array([1.0, 1.0, 1.0, 9.0]), 0.5)
    np.testing.assert_allclose(moved, [-0.11, 0.0, 0.11, 0.0])
    assert np.abs(_beeswarm(np.ones(100), 0.5)).max() <= 0.36 + 1e-9


def test_run_percentiles_are_curves_of_runs():
    # Runs of means 2, 1, 4, 3, 5: the median run is the one of mean 3, the lowest and highest are at 5% and 95%.
    returns = np.array([[4.0, 2.0, 0.0, 3.0, 9.0], [0.0, 0.0, 8.0, 3.0, 1.0]])
    band = run_percentiles(returns)
    np.testing.assert_array_equal(band.value, [3.0, 3.0])
    np.testing.assert_array_equal(band.low, [2.0, 0.0])
    np.testing.assert_array_equal(band.high, [9.0, 1.0])
    # 41 runs: the 5th percentile is the third lowest run, the 95th the third highest; in any order of the runs.
    many = np.random.default_rng(0).permutation(np.arange(41.0))[None, :]
    assert [float(one[0]) for one in run_percentiles(many)] == [20.0, 2.0, 38.0]
    for n in (1, 2, 4, 7, 30, 100):  # as numpy's nearest, where that is not between two runs
        runs = np.random.default_rng(n).normal(size=(1, n))
        for percent, one in zip((50, 5, 95), run_percentiles(runs), strict=True):
            if percent * (n - 1) % 100 != 50:
                assert one[0] == np.percentile(runs, percent, method="nearest")


def test_run_percentiles_do_not_depend_on_the_order_of_the_runs():
    returns = np.array([[1.0, 3.0, 2.0, 2.0], [3.0, 1.0, 2.0, 2.0]])  # all of mean 2
    for order in itertools.permutations(range(4)):
        for one, other in zip(run_percentiles(returns[:, order]), run_percentiles(returns), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_range_of_runs_is_at_each_point():
    band = run_range(np.array([[1.0, 2.0, 3.0, 10.0], [5.0, 5.0, 4.0, 0.0]]))
    np.testing.assert_array_equal(band.value, [2.5, 4.5])
    np.testing.assert_array_equal(band.low, [1.0, 0.0])
    np.testing.assert_array_equal(band.high, [10.0, 5.0])


def test_columns_are_chosen_by_name_in_their_order():
    table = Table("key", "t", ("arm", "runs", "IQM"), ((Cell("dqn"), Cell("5"), Cell("1.0")),), keys=("runs", "iqm"))
    assert with_columns(table, ["iqm", "p", "runs"]).columns == ("arm", "IQM", "runs")
    assert with_columns(table, ["iqm"]).rows == ((Cell("dqn"), Cell("1.0")),)
    assert with_columns(table, ["verdict"]) is None
    assert with_columns(table, None) is table


def test_latex_has_a_label_and_prints_the_best_in_bold():
    text = latex(Table("scores_x", "t", ("arm", "IQM"), ((Cell("a_b"), Cell("−1", "[−2, 0]", True)),)))
    assert "\\label{tab:scores_x}" in text
    assert r"a\_b & \textbf{$-$1} [$-$2, 0] \\" in text


def test_a_list_of_ablations_is_one_choice_and_the_others():
    assert _one_choice("ablation=[a, b/c,d]") == ["ablation=a", "ablations=[b/c,d]"]
    assert _one_choice("ablation=[a]") == ["ablation=a"]
    for other in ("ablation=a", "runs=[a,b]", "ablation=[]", "ablation=a,b"):
        assert _one_choice(other) == [other]


def test_data_of_the_page_cannot_end_its_script():
    assert as_script(["</script>"]) == '["\\u003c/script>"]'
    assert _numbers(np.array([1.23456789, np.nan, -1e9])) == [1.23457, None, -1e9]
