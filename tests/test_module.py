"""What the learner does besides the update: rewards as they are learned from, and resets."""

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from qohort.cli import CONFIG_DIRECTORY
from qohort.config import check_config
from qohort.module import QLearning
from qohort.q_values import QValues


class Recorder:
    def row(self, member, progress, metrics):
        pass


def module(*overrides):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        config = compose("train", ["seed=[0,1]", "compile=none", "logger=none", *overrides])
    return QLearning(check_config(config), Recorder(), print)


def test_rewards_are_scaled_then_clipped():
    reward = np.array([[-10.0, 0.5, 3.0]])
    assert module()._learned_from(reward) is reward
    assert module("reward_scale=0.1")._learned_from(reward).tolist() == [[-1.0, 0.05, 0.30000000000000004]]
    assert module("reward_scale=0.1", "reward_clip=0.2")._learned_from(reward).tolist() == [[-0.2, 0.05, 0.2]]


def test_a_reset_starts_the_output_layers_anew_from_each_members_stream():
    learner = module("reset_every=100", "network.hidden=[5]")
    learner.optimizer = learner.configure_optimizers()
    for state in learner.optimizer.state.values():
        state["mean"].fill_(1.0)
    before = {name: one.clone() for name, one in learner.online.parameters_by_name().items()}
    learner.progress.env_steps = 300
    learner._reset_outputs()
    third = {name: one.clone() for name, one in learner.online.parameters_by_name().items()}
    learner.progress.env_steps = 400
    learner._reset_outputs()
    fourth = learner.online.parameters_by_name()
    for name, parameter in learner.online.network.named_parameters():
        is_output = name.startswith("output")
        assert torch.equal(before[name], fourth[name]) != is_output
        assert torch.equal(third[name], fourth[name]) != is_output
        assert torch.equal(learner.target.parameters_by_name()[name], fourth[name])
        assert bool(learner.optimizer.state[parameter]["mean"].any()) != is_output
        if is_output:
            assert not torch.equal(fourth[name][0], fourth[name][1])
    learner.close()


def test_noise_moves_the_values_that_are_acted_on_and_not_those_of_evaluation():
    learner = module("agent=noisy", "network.hidden=[5]")
    values = QValues(learner.online, learner.head, "none")
    observation = torch.randn(2, 3, 4)
    normal = torch.randn(2, learner.online.normals)
    acted, again = values(observation, {"normal": normal}), values(observation, {"normal": -normal})
    quiet = values(observation)
    assert not torch.allclose(acted, again)
    assert torch.equal(quiet, values(observation, {"normal": torch.zeros_like(normal)}))
    assert not torch.allclose(acted, quiet)
    # A member's noise is its own.
    other = values(observation, {"normal": torch.stack([normal[0], -normal[1]])})
    assert torch.equal(other[0], acted[0])
    assert torch.equal(other[1], again[1])
    learner.close()
