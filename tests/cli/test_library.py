"""qohort.compose tells a mistake as the command line does."""

import pytest

import qohort
from qohort.config.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["head=huberr"], "head=huberr is not one of the choices: did you mean huber?"),
        (["experiment=debgu"], "did you mean debug?"),
        (["optimizer.lrr=1"], "unknown key optimizer.lrr=1: did you mean optimizer.lr?"),
        (["seed 3"], "'seed 3' is not a setting: write key=value"),
        ([["experiment=debug", "seed=3"]], "give each as a string of its own"),
        ([3], "3 is not one override: give each as a string of its own"),
        (["experiment=debug seed=3"], "give each as a string of its own"),
        (["-m", "seed=0,1"], "a sweep is qohort train -m"),
        (["--cfg", "job"], "--cfg is an option of the command line"),
        (["seed=0,1"], "seed=0,1 is a sweep, which is for the command line"),
    ],
)
def test_a_mistake_is_told_in_one_line(overrides, words):
    with pytest.raises(ConfigError) as error:
        qohort.compose(*overrides)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_right_is_composed():
    assert qohort.compose("experiment=debug", "seed=[0,1]").seed == [0, 1]
