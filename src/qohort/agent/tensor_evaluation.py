"""Evaluation in tensor environments: whole episodes of all members, played from a tape."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from qohort.agent.evaluation import EpisodeScores, EvaluationStopped, random_actions
from qohort.agent.q_values import MemberValues
from qohort.cohort.program import Compiler
from qohort.cohort.streams import UniformStream, member_seed
from qohort.cohort.tape import Player, Slots
from qohort.config.schema import EvaluationConfig
from qohort.environments.tensor.base import TensorEnvironment
from qohort.environments.tensor.vector import advance, episode_keys, start
from qohort.replay.transition import Values

AHEAD = 64
"""The steps that are played before Python looks whether every episode has ended."""


class TensorEvaluator:
    """Plays evaluation episodes of all members in a tensor environment.

    The episodes depend only on the members' seeds and on `round`, so the evaluator has no state to save.

    Args:
        environment: The environment.
        evaluation: The number of episodes, their maximum length and ε.
        seeds: The members' seeds.
        values: The action values of one member, without noise.
        parameters: The online parameters.
        compiler: Compiles the program.
        device: The device of the networks.
    """

    def __init__(
        self,
        environment: TensorEnvironment,
        evaluation: EvaluationConfig,
        seeds: Sequence[int],
        values: MemberValues,
        parameters: Mapping[str, Tensor],
        compiler: Compiler,
        device: torch.device,
    ) -> None:
        self._environment, self._config, self._seeds, self._values = environment, evaluation, seeds, values
        self._device, self._player = device, Player(device)
        state = self._first_state(0)
        shape = (len(seeds), evaluation.episodes)
        self._state: dict[str, Any] = {
            "environment": state,
            "online": parameters,
            "returns": torch.zeros(shape, dtype=torch.float64, device=device),
            "lengths": torch.zeros(shape, dtype=torch.int64, device=device),
            "running": torch.ones(shape, dtype=torch.bool, device=device),
        }
        program = compiler.program("the evaluation", self._step, self._state)
        self._uniforms = Slots(AHEAD, (*shape, 2), torch.float64, device) if evaluation.epsilon else None
        slots = [{}] if self._uniforms is None else [{"uniforms": tensor} for tensor in self._uniforms.tensors]
        calls = [program.bind(inputs) for inputs in slots]
        self._calls = calls * AHEAD if self._uniforms is None else calls

    def _first_state(self, round: int) -> dict[str, Tensor]:
        episodes = self._config.episodes
        keys = episode_keys([member_seed(seed, "evaluation", round) for seed in self._seeds], episodes, "evaluation")
        state = start(self._environment, keys, torch.zeros_like(keys))
        return {name: tensor.contiguous().to(self._device) for name, tensor in state.items()}

    def prepare(self, values: Values) -> None:
        """Do nothing: the program was compiled when it was bound."""

    def __call__(
        self,
        values: Values,
        round: int,
        without: Collection[int] = (),
        stop: Callable[[], str | None] = lambda: None,
    ) -> EpisodeScores:
        """Play one episode in every environment; see `qohort.agent.evaluation.Evaluator`."""
        state = self._state
        for name, tensor in self._first_state(round).items():
            state["environment"][name].copy_(tensor)
        state["returns"].zero_()
        state["lengths"].zero_()
        state["running"].fill_(True)
        stream = None
        if self._uniforms is not None:
            seeds = [member_seed(seed, "evaluation", round) for seed in self._seeds]
            stream = UniformStream(seeds, "evaluation", (self._config.episodes, 2), block=64)
        taken = 0
        while taken < self._config.max_episode_steps and bool(state["running"].any()):
            if stop():
                raise EvaluationStopped
            count = min(AHEAD, self._config.max_episode_steps - taken)
            if stream is not None and self._uniforms is not None:
                self._uniforms.fill(stream.take(count))
            self._player.play(self._calls[:count])
            taken += count
        returns, lengths = state["returns"].cpu().numpy().copy(), state["lengths"].cpu().numpy().copy()
        returns[[*without]] = np.nan
        return EpisodeScores(returns, lengths)

    def beyond_bounds(self) -> str | None:
        """Return None: observations keep their bounds."""
        return None

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def _step(self, state: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Step all environments once; everything is written in place."""
        observation = self._environment.observe(state["environment"])
        values = vmap(self._values)(state["online"], {"observation": observation})
        action = values.argmax(-1)
        if inputs:
            action = random_actions(action, values.shape[-1], inputs["uniforms"], self._config.epsilon)
        new, outcome = advance(self._environment, state["environment"], action)
        running = state["running"]
        state["returns"].add_(torch.where(running, outcome.reward.double(), 0.0))
        state["lengths"].add_(running.long())
        running.logical_and_(~(outcome.terminated | outcome.truncated))
        for name, tensor in new.items():
            state["environment"][name].copy_(tensor)
        return {}
