"""Sensitivity: its numbers by hand, what a study trains, what it writes, and what is refused."""

import csv
import io
import re
from dataclasses import replace

import hydra
import numpy as np
import pytest
from hydra import initialize_config_dir

import qohort.runs.training
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError, RunsFailed
from qohort.experiments.sensitivity import Place, Results, read_study, results_of
from qohort.experiments.sensitivity_runs import train_study
from qohort.report.sensitivity import analyse, figures, print_tables, write_sensitivity
from qohort.sensitivity import (
    Tuned,
    best_of_each,
    best_shared,
    by_number_tuned,
    effective_dimensionality,
    normalised,
    ranks,
    sensitivity,
)

TRAIN = (
    "train={learning_starts:60,batch_size:16,log_every:50,evaluation.every:100,evaluation.episodes:2,budget:200,"
    "evaluation.max_episode_steps:50,compile:none,logger:none,trainer.progress_bar:false}"
)
BASE = (
    "name=small",
    TRAIN,
    "arms={dqn:{agent:dqn},double:{agent:double}}",
    "environments={cartpole:{env:cartpole},acrobot:{env:acrobot}}",
    "grid={optimizer.lr:{values:[1e-4,1e-3,1e-2],default:1e-3},gamma:{values:[0.9,0.99],default:0.99}}",
    "seeds=[0,1,2,3,4]",
    "new_seeds=[10,11,12]",
)


@pytest.fixture(autouse=True)
def initialized():
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        yield


def compose(*overrides):
    last = {text.partition("=")[0]: text for text in (*BASE, *overrides)}
    return hydra.compose("sensitivity", list(last.values()))


def test_scores_are_between_the_percentiles_of_all_arms_and_settings():
    # 21 performances 0, 10, ..., 200 in the first environment, of three arms: its 5th percentile is 10, its 95th 190
    performance = np.zeros((3, 2, 7))
    performance[:, 0] = 10 * np.arange(21).reshape(3, 7)
    scores = normalised(performance, 1)
    np.testing.assert_allclose(scores[0, 0, :3], [-10 / 180, 0, 10 / 180])
    np.testing.assert_allclose(scores[2, 0, -2:], [1, 190 / 180])
    assert (scores[:, 1] == 0).all(), "where all settings are equal"


def test_sensitivity_is_what_one_setting_for_all_environments_loses():
    one_serves_all = [[1.0, 0.2], [0.8, 0.1]]  # [environment, setting]
    none_does = [[1.0, 0.0], [0.1, 0.7]]
    found = sensitivity(np.array([one_serves_all, none_does]), 1)
    np.testing.assert_allclose(found.tuned, [0.9, 0.85])
    np.testing.assert_allclose(found.shared, [0.9, 0.55])
    np.testing.assert_allclose(found.lost, [0, 0.3])


def test_effective_dimensionality():
    # Two environments, two hyperparameters with two values each; the defaults are the first values.
    scores = np.array([[[0.2, 0.9], [0.3, 1.0]], [[0.4, 0.2], [0.5, 1.0]]])
    tuned = by_number_tuned(scores, (0, 0))
    assert tuned[0] == Tuned(pytest.approx(0.3), ())
    # the second alone: 0.9 and 0.4; the first alone: 0.3 and 0.5
    assert tuned[1] == Tuned(pytest.approx(0.65), (1,))
    assert tuned[2] == Tuned(pytest.approx(1.0), (0, 1))
    assert effective_dimensionality(tuned) == 2
    assert effective_dimensionality(tuned, near=0.65) == 1
    assert effective_dimensionality(tuned, near=0.3) == 0


def test_one_setting_is_chosen_by_ranks_and_not_by_the_scale_of_an_environment():
    performance = np.array([[[0.0, 1.0, 2.0], [3.0, 2.0, -1000.0]], [[4.0, 4.0, 0.0], [0.0, 1.0, 1.0]]])
    ranked = ranks(performance, 1)
    np.testing.assert_allclose(ranked[0] * 6, [[2, 3, 4], [6, 5, 1]])
    np.testing.assert_allclose(ranked[1] * 6, [[6, 6, 2], [2, 4, 4]])
    assert best_shared(ranked).tolist() == [0, 1]
    assert best_of_each(performance).tolist() == [[2, 0], [0, 1]]


@pytest.fixture
def study(tmp_path):
    return read_study(compose(f"reports_dir={tmp_path}"))


@pytest.fixture
def found(study):
    """Results that were made up, with each of the 12 combinations of arms, environments and learning rates apart."""
    rng = np.random.default_rng(1)
    scores = 10 * np.arange(24.0).reshape(2, 2, 3, 2)[..., None] + rng.normal(size=(2, 2, 3, 2, 5))
    performance = scores.mean(-1)
    shared, tuned = best_shared(ranks(performance, 2)), best_of_each(performance)
    confirmed = {(place, setting): [float(setting)] * 3 for place in study.places for setting in range(6)}
    return Results(scores, np.array([[0, 1], [0, 0]]), shared, tuned, confirmed)


def test_intervals_are_those_of_a_slow_twin(study, found):
    arm = analyse(study, found)[1]
    rng = np.random.default_rng(0)
    index = rng.integers(5, size=(2000, 5))
    lost = []
    for draw in index:
        performance = found.scores[..., draw].mean(-1)
        pools = performance.transpose(1, 0, 2, 3).reshape(2, -1)
        low, high = (np.percentile(pools, q, axis=1)[:, None, None] for q in (5, 95))
        scores = (performance[1] - low) / (high - low)
        best_of_all = max(scores[:, i, j].mean() for i in range(3) for j in range(2))
        lost.append(np.mean([scores[e].max() for e in range(2)]) - best_of_all)
    from scipy.stats import norm, t

    tail = norm.cdf(-t.ppf(0.975, 4) * np.sqrt(5 / 4))
    np.testing.assert_allclose((arm.lost.low, arm.lost.high), np.quantile(lost, (tail, 1 - tail)), atol=1e-12)


def test_what_a_study_writes(study, found, capsys):
    directory, tables = write_sensitivity(study, found)
    assert {path.name for path in directory.rglob("*.*")} == {
        *("table.md", "table.tex", "scores.csv"),
        *(f"{name}.{kind}" for name in ("plane", "dimensions", "curves") for kind in ("png", "pdf")),
    }
    rows = list(csv.reader(io.StringIO((directory / "scores.csv").read_text())))
    assert rows[0] == ["arm", "environment", "optimizer.lr", "gamma", "seed", "auc"]
    assert rows[1][:5] == ["dqn", "cartpole", "0.0001", "0.9", "0"]
    assert float(rows[1][5]) == found.scores[0, 0, 0, 0, 0]
    assert len(rows) == 1 + 2 * 2 * 6 * 5
    text = (directory / "table.md").read_text()
    assert "dqn in acrobot: 1 runs failed" not in text
    assert "dqn in acrobot: 1 run failed, and counts as the lowest score of the environment." in text
    assert "| dqn | all | 0.01 | 0.99 |" in text, "the last setting has the highest score everywhere"
    assert "| dqn | one for all | 5.0, 5.0, 5.0 | 5.0, 5.0, 5.0 |" in text, "few runs are listed"
    before = {path: path.read_bytes() for path in directory.rglob("*.*")}
    write_sensitivity(study, found)
    assert before == {path: path.read_bytes() for path in directory.rglob("*.*")}, "the same runs, the same files"
    print_tables(tables)
    assert "tuned per environment" in capsys.readouterr().out


def test_an_environment_in_which_few_settings_stand_out_is_named(study, found, tmp_path):
    scores = found.scores.copy()
    scores[:, 1] = 0.0
    scores[0, 1, 0, 0] = 100.0  # one of 12 settings; the 95th percentile is 45 of 100
    directory, _ = write_sensitivity(study, replace(found, scores=scores))
    text = (directory / "table.md").read_text()
    assert "In acrobot the best setting has a score of 2.2, far above" in text
    assert "In cartpole" not in text
    scores[0, 1, 0, 0] = 0.0
    write_sensitivity(study, replace(found, scores=scores))
    assert "In acrobot" not in (directory / "table.md").read_text(), "nothing stands out where all are equal"


def test_a_failed_run_counts_as_the_lowest_of_its_environment_and_once(tmp_path):
    study = read_study(compose("without={double:[gamma]}", f"reports_dir={tmp_path}"))
    scores = np.broadcast_to(np.arange(6.0)[:, None], (2, 2, 6, 5)).copy()
    scores[0, 0, 5, 1] = np.nan
    scores[1, 0, 2:4, 0] = np.nan  # one run, at both values of gamma
    found = results_of(study, scores)
    assert found.failed.tolist() == [[1, 0], [1, 0]]
    assert found.scores[0, 0, 2, 1].tolist() == [5, 0, 5, 5, 5]
    assert found.scores[1, 0, 1, 0, 0] == 0
    assert found.tuned.tolist() == [[4, 5], [5, 5]], "the mean of setting 5 falls to 4, the first of two equals wins"
    scores[:, 1] = np.nan
    with pytest.raises(RunsFailed, match=r"every run in environments\.acrobot has failed"):
        results_of(study, scores)


def test_an_environment_in_which_nine_of_ten_settings_are_equal_is_named(tmp_path):
    grid = "grid={optimizer.lr:{values:[1e-5,2e-5,3e-5,4e-5,5e-5,6e-5,7e-5,8e-5,9e-5,1e-4,1e-3,1e-2],default:1e-3}}"
    study = read_study(compose(grid, f"reports_dir={tmp_path}"))
    scores = np.zeros((2, 2, 12, 5))
    scores[:, 0] = np.arange(24.0).reshape(2, 12, 1)
    scores[0, 1, 0] = 1.0  # one of 24 settings is less than 5%
    found = results_of(study, scores)
    found = replace(found, confirmed={one: [0.0] * 3 for one in study.chosen(found)})
    directory, _ = write_sensitivity(study, found)
    assert "In acrobot nine of ten settings are equal" in (directory / "table.md").read_text()


def test_tables_show_no_value_of_a_hyperparameter_that_an_arm_lacks(found, tmp_path):
    study = read_study(compose("without={double:[gamma]}", f"reports_dir={tmp_path}"))
    directory, _ = write_sensitivity(study, found)
    text = (directory / "table.md").read_text()
    assert "| double | all | 0.01 | – |" in text
    assert "| dqn | all | 0.01 | 0.99 |" in text
    drawn = figures(study, found, analyse(study, found))["curves"].best["cartpole", "gamma"]
    assert np.isfinite(drawn[0]).all()
    assert np.isnan(drawn[1]).all()
    assert re.search(r"\| double \|.* of 1", text)
    assert re.search(r"\| dqn \|.* of 2", text)


def test_networks_of_all_arms_are_checked_before_anything_is_trained(tmp_path):
    arms = "arms={dqn:{agent:dqn},other:{agent:dqn,network:nature}}"
    with pytest.raises(ConfigError):
        read_study(compose(arms, f"reports_dir={tmp_path}", f"output_dir={tmp_path}"))
    assert not list(tmp_path.iterdir())


def test_settings_of_a_trial(study):
    trial = study.trial(Place(1, 1), 3, (7,))
    assert (trial.settings["agent"], trial.settings["env"]) == ("double", "acrobot")
    assert (trial.settings["optimizer.lr"], trial.settings["gamma"]) == (1e-3, 0.99)
    assert study.default == (1, 1)


def test_an_arm_without_a_hyperparameter_has_the_same_trial_at_all_of_its_values(tmp_path):
    study = read_study(compose("without={double:[gamma]}", f"reports_dir={tmp_path}"))
    trials = [study.trial(Place(1, 0), setting, (7,)) for setting in range(6)]
    assert [trials.index(trial) for trial in trials] == [0, 0, 2, 2, 4, 4]
    assert "gamma" not in trials[0].settings


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("grid={gamma:[0.9,0.99]}", "grid.gamma=[0.9,0.99] must be {values: [A, B], default: A}"),
        ("grid={gamma:{values:[0.9],default:0.9}}", "grid.gamma.values"),
        ("grid={gamma:{values:[0.9,0.99],default:0.95}}", "default=0.95 is not one of its values [0.9,0.99]"),
        ("grid={gamma:{values:[0.9,0.9],default:0.9}}", "has a value twice"),
        ("grid={gama:{values:[0.9,0.99],default:0.9}}", "gama"),
        ("grid={gamma:{values:[0.9,2],default:0.9}}", "grid: gamma=2"),
        ("grid={checkpoint.every:{values:[10,20],default:10}}", "grid: checkpoint.every is not a hyperparameter"),
        ("arms={dqn:{agent:dqn,seed:3}}", "arms.dqn: seed cannot be set here: the seeds are seeds and new_seeds"),
        ("arms={dqn:{agent:dqn,gamma:0.9}}", "arms.dqn: gamma is in grid too"),
        ("arms={dqn:{agent:dqn},other:{agent:dqn}}", "arms.other in environments.cartpole is the same as another arm"),
        ("arms={dqn:{agent:dqm}}", "agent=dqm"),
        ("without={dqm:[gamma]}", "without.dqm: there is no such arm"),
        ("without={dqn:[gama]}", "without.dqn: gama is not in grid"),
        ("new_seeds=[4,5]", "seeds and new_seeds share 4"),
        ("seeds=[1,1]", "seeds=[1,1] has a seed twice"),
        ("score=best", "score=best"),
        ("name=../x", "name=../x is not a file name"),
    ],
)
def test_what_is_refused(override, words, tmp_path):
    with pytest.raises(ConfigError) as error:
        read_study(compose(override, f"reports_dir={tmp_path}", f"output_dir={tmp_path}"))
    assert words in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_study_trains_each_run_once_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    trained = []
    really = qohort.runs.training.train_cohort

    def listen(members, step):
        if len(trained) == 1:
            trained.append(None)
            raise KeyboardInterrupt
        trained.append([one.config.seed for one in members])
        really(members, step)

    monkeypatch.setattr(qohort.runs.training, "train_cohort", listen)
    own = ("environments={cartpole:{env:cartpole}}", f"reports_dir={tmp_path}", f"output_dir={tmp_path}")
    with pytest.raises(KeyboardInterrupt):
        train_study(read_study(compose(*own)))
    study = read_study(compose(*own))
    found = train_study(study)
    sizes = [len(seeds) for seeds in trained if seeds is not None]
    assert sizes[:2] == [30, 30], "an arm's six settings × five seeds are one cohort"
    chosen = {(a, setting) for a in range(2) for setting in (found.shared[a], found.tuned[a, 0])}
    assert sum(sizes[2:]) == 3 * len(chosen)
    assert set(found.confirmed) == {(Place(int(a), 0), int(setting)) for a, setting in chosen}
    before = len(trained)
    again = train_study(study)
    assert len(trained) == before
    np.testing.assert_array_equal(again.scores, found.scores)
