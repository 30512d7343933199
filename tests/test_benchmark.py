"""Stable-Baselines3 is given the settings of our experiments."""

import dataclasses
import math

import pytest

import qohort
import speed
from qohort.config.errors import ConfigError
from speed import GEOMETRIES, BenchmarkConfig, geometry_config, sb3_arguments

CLEANRL = {
    "policy_kwargs": {"net_arch": [120, 84], "optimizer_kwargs": {"betas": (0.9, 0.999), "eps": 1e-8}},
    "learning_rate": 2.5e-4,
    "buffer_size": 10_000,
    "batch_size": 128,
    "gamma": 0.99,
    "learning_starts": 10_000,
    "train_freq": 10,
    "gradient_steps": 1,
    "max_grad_norm": math.inf,
    "target_update_interval": 500,
    "exploration_fraction": 0.5,
    "exploration_initial_eps": 1.0,
    "exploration_final_eps": 0.05,
}
ARTICLE = {
    "policy_kwargs": {"net_arch": [24, 24], "optimizer_kwargs": {"betas": (0.9, 0.999), "eps": 1e-8}},
    "learning_rate": 1e-3,
    "buffer_size": 1_000_000,
    "batch_size": 20,
    "gamma": 0.95,
    "learning_starts": 20,
    "train_freq": 1,
    "gradient_steps": 1,
    "max_grad_norm": math.inf,
    "target_update_interval": 1,
    "exploration_fraction": 919 / 20_000,  # 0.995 to the power of 919 is below 0.01 for the first time
    "exploration_initial_eps": 1.0,
    "exploration_final_eps": 0.01,
}


@pytest.mark.parametrize(("name", "expected"), [("cleanrl", CLEANRL), ("article", ARTICLE)])
def test_the_arguments_of_a_geometry(name, expected):
    assert sb3_arguments(geometry_config(GEOMETRIES[name])) == expected


def test_what_stable_baselines3_has_not():
    config = geometry_config(GEOMETRIES["cleanrl"])
    other = dataclasses.replace(config, replay={"_target_": "qohort.replay.newest.NewestTransition"})
    with pytest.raises(ConfigError, match="NewestTransition"):
        sb3_arguments(other)
    epsilon = {"_target_": "qohort.cohort.schedules.ConstantSchedule", "value": 0.1}
    constant = dataclasses.replace(config, exploration={**config.exploration, "epsilon": epsilon})
    with pytest.raises(ConfigError, match="epsilon"):
        sb3_arguments(constant)


def test_rainbow_has_no_baseline():
    config = geometry_config(GEOMETRIES["rainbow"])
    assert config.agent == "rainbow"
    with pytest.raises(ConfigError, match="PrioritizedReplay"):
        sb3_arguments(config)
    assert not GEOMETRIES["rainbow"].beside


def test_replays_are_timed(monkeypatch):
    monkeypatch.setattr(speed, "REPLAY_CAPACITY", 256)
    rest = {"repeats": 1, "core": 0, "compile": "none", "backend": "auto", "bits": qohort.BITS, "output": ""}
    rest |= {"jax": None, "budget_factor": 1}
    times = speed.measure_replay(BenchmarkConfig(("article",), (1,), sweep=0, replay_members=2, **rest))
    assert list(times) == ["uniform", "prioritized, without feeding back", "prioritized"]
    assert min(times.values()) > 0
