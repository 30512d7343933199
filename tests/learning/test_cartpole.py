"""Every agent solves CartPole within 50,000 env_steps, at the settings that are kept for it."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from qohort.config.composition import CONFIG_DIRECTORY
from qohort.runs.training import train
from qohort.statistics import iqm

pytestmark = pytest.mark.slow

AGENTS = sorted(file.stem for file in (CONFIG_DIRECTORY / "experiment" / "cartpole_50k").glob("*.yaml"))


@pytest.mark.parametrize("agent", AGENTS)
def test_the_interquartile_mean_of_ten_seeds_is_at_least_450(tmp_path: Path, agent: str) -> None:
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        overrides = [f"experiment=cartpole_50k/{agent}", f"output_dir={tmp_path}", "logger=none"]
        results = train(compose("train", overrides))
    assert [result["seed"] for result in results] == list(range(10))
    assert {result["budget"] for result in results} == {50_000}
    assert iqm([result["final_return"] for result in results]) >= 450
