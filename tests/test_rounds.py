"""Rounds of tensor environments: blocks of any length, the slow twin that steps one by one, tapes, evaluations."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

import qohort.agent.rounds
import qohort.agent.tensor_evaluation
from matrix import matrix
from qohort.agent.callbacks import CohortCallback
from qohort.agent.exploration import EpsilonGreedy
from qohort.agent.learner import QLearning
from qohort.agent.optimizers import MemberAdam
from qohort.cohort.program import Compiler
from qohort.cohort.streams import UniformStream
from qohort.cohort.tape import Player, PythonCall, Slots
from qohort.config.errors import ConfigError
from qohort.config.schema import EnvironmentConfig
from qohort.environments.tensor.classic_control import CartPole
from qohort.environments.tensor.registry import TENSOR_ENVIRONMENTS, tensor_environment
from qohort.environments.tensor.vector import TensorVectorEnv, episode_keys
from qohort.replay.ring import StoredSteps, UniformReplay
from test_exactness import Interrupted, interrupt_at, run

ODD = ("batch_size=17", "network.hidden=[19,11]", "train_every=3", "gradient_steps=2", "target_network.every=70")
AGENTS = {
    "dqn": ODD,
    "n-step, seam": (*ODD, "replay.n_step=3", "replay.capacity=120", "env.num_envs=3"),
    "polyak, clipped, falling rate": ("target_network=polyak", "max_grad_norm=0.1", "lr_schedule=linear", *ODD[:4]),
    "three environments": ("env.num_envs=3", "+env.kwargs.max_episode_steps=9", *ODD, "log_every=20"),
    "prioritized": (*ODD, "agent=prioritized"),
    "rainbow": ("agent=rainbow", "head.atoms=11", "network.hidden=[19]", "batch_size=17"),
    "iqn": ("agent=iqn", "network.hidden=[19]", "batch_size=17"),
    "target by updates": (*ODD, "target_network.every=7", "target_network.per=gradient_steps"),
    "munchausen": (*ODD, "agent=munchausen"),
    "rmsprop": (*ODD, "optimizer=rmsprop"),
    "pqn": ("agent=pqn", "train_every=48", "gradient_steps=6", "learning_starts=0", "batch_size=16"),
    "lambda": ("agent=dqn_lambda", "replay.block=7", "replay.blocks=9", "replay.refresh_every=100", "batch_size=17"),
    "no replay": ("replay=none", "target_network=none", "env.num_envs=2"),
    "boltzmann": (*ODD, "exploration=boltzmann"),
    "spread": (*ODD, "env.num_envs=3", "exploration.spread=7", "reward_scale=0.5", "reward_clip=0.3"),
    "epsilon by episode": (*ODD, "exploration=multiplicative", "exploration.epsilon.per=episodes"),
    "behaviour's epsilon": (*ODD, "bootstrap=expected_sarsa"),
    "minatar": ("env=minatar", "network=minatar", "network.hidden=[11]", "batch_size=8", "train_every=4"),
    "frozenlake": ("env=frozenlake", "network=table", "batch_size=8"),
}


class EveryStep(CohortCallback):
    """A callback that is called at every step, so that rounds are not played in blocks."""

    steps = 0

    def on_env_step(self, trainer: object, module: object) -> None:
        """Count the steps."""
        EveryStep.steps += 1


ONE_BY_ONE = "callbacks=[{_target_: test_rounds.EveryStep}]"


@pytest.mark.parametrize("name", matrix(AGENTS, ["three environments", "pqn"]))
def test_blocks_of_rounds_equal_single_steps(tmp_path: Path, name: str) -> None:
    """Of the learner that takes one step at a time, asked by a callback, and of blocks: equal to the bit."""
    overrides = (*AGENTS[name], "compile=none", "env.backend=tensor")
    EveryStep.steps = 0
    blocks = run(tmp_path / "blocks", [3, 0], *overrides)
    assert EveryStep.steps == 0
    steps = run(tmp_path / "steps", [3, 0], *overrides, "+callbacks.every={_target_: test_rounds.EveryStep}")
    assert EveryStep.steps > 100
    assert blocks == steps


@pytest.mark.parametrize("calls", matrix([1, 7], [7]))
def test_the_length_of_blocks_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    overrides = (*ODD, "compile=none", "env.backend=tensor", "evaluation.epsilon=0.3")
    long = run(tmp_path / "long", [3], *overrides)
    monkeypatch.setattr(qohort.agent.rounds, "CALLS", calls)
    monkeypatch.setattr(qohort.agent.tensor_evaluation, "AHEAD", calls)
    assert run(tmp_path / "short", [3], *overrides) == long


@pytest.mark.parametrize("name", matrix(["dqn", "rainbow", "pqn", "minatar"], ["pqn"]))
def test_a_run_that_was_interrupted_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    overrides = (*AGENTS[name], "compile=none", "checkpoint.every=90", "env.backend=tensor")
    undisturbed = run(tmp_path / "undisturbed", [0, 3], *overrides)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 250)
        with pytest.raises(Interrupted):
            run(tmp_path / "resumed", [0, 3], *overrides)
    assert list(tmp_path.glob("resumed/*/*/seed-3/checkpoints/step-*.ckpt"))
    assert {**run(tmp_path / "resumed", [3], *overrides), **run(tmp_path / "resumed", [0], *overrides)} == undisturbed


@pytest.mark.parametrize("seeds", matrix([[3, 1], [0, 1, 2, 3, 4]], [], in_ci=[[3, 1]]))
def test_compiled_rounds_are_the_same_alone_and_in_a_cohort_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], seeds: list[int]
) -> None:
    overrides = (*ODD, "compile=inductor", "checkpoint.every=90", "env.backend=tensor", "evaluation.epsilon=0.2")
    alone = run(tmp_path / "alone", [3], *overrides)
    cohort = run(tmp_path / "cohort", seeds, *overrides)
    assert cohort[3] == alone[3]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 250)
        with pytest.raises(Interrupted):
            run(tmp_path / "resumed", [3, 1], *overrides)
    resumed = run(tmp_path / "resumed", [3, 1], *overrides)
    assert resumed == {3: cohort[3], 1: cohort[1]}
    assert "qohort: " not in capfd.readouterr().err  # every program is played from a tape


def test_what_cannot_be_played_in_blocks_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, [3], *ODD, "compile=none", "env.backend=tensor", "normalize_observations=true")
    assert "normalised by running statistics, so the environments are stepped" in capsys.readouterr().err


def test_an_evaluation_plays_the_episodes_of_a_slow_loop() -> None:
    """Greedy with ε, written out: one environment at a time, until its first end."""
    from qohort.agent.evaluation import random_actions
    from qohort.agent.tensor_evaluation import TensorEvaluator
    from qohort.cohort.streams import member_seed
    from qohort.config.schema import EvaluationConfig

    def values(parameters: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
        return inputs["observation"] @ parameters["weight"]

    weight = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(1))
    evaluation = EvaluationConfig(every=1, episodes=3, epsilon=0.25, max_episode_steps=70)
    environment, compiler, cpu = CartPole(), Compiler("none"), torch.device("cpu")
    parts = (environment, evaluation, [5, 6], values, {"weight": weight}, compiler, cpu)
    scores = TensorEvaluator(*parts)(values, 40)  # type: ignore[arg-type]
    for m, seed in enumerate((5, 6)):
        own = member_seed(seed, "evaluation", 40)
        uniforms = UniformStream([own], "evaluation", (3, 2), block=64)
        vector = TensorVectorEnv(environment, episode_keys([own], 3, "evaluation"))
        returns, running = np.zeros(3), np.ones(3, dtype=bool)
        for _ in range(70):
            greedy = (torch.from_numpy(vector.observations) @ weight[m]).argmax(-1)
            action = random_actions(greedy, 2, torch.from_numpy(uniforms.next()[0]), 0.25).numpy()
            _, reward, terminated, truncated, _ = vector.step(action)
            returns += reward * running
            running &= ~(terminated | truncated)
        assert scores.returns[m].tolist() == returns.tolist()
    assert scores.returns.min() < scores.returns.max()


@pytest.mark.parametrize("how", matrix(["none", "inductor", "inductor, 2 threads", "inductor, 5 threads"], ["none"]))
def test_a_tape_calls_programs_in_order_and_keeps_the_results_of_each(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qohort.cohort.native.CALLS_FOR_THREADS", 1)
    mode, _, threads = how.partition(", ")
    state = {"total": torch.zeros(3, 2)}
    table = np.arange(50, dtype=np.float32).reshape(25, 2)  # too large for inductor to write it into the code

    def add(state: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        row = torch.from_numpy(table)[inputs["by"][:, :1].long() % 25].squeeze(1)
        state["total"].add_(inputs["by"] + row)
        return {"twice": state["total"] * 2}

    program = Compiler(mode, threads=int(threads[:1] or 1)).program("sums", add, state)
    slots = Slots(4, (3, 2), torch.float32, torch.device("cpu"))
    calls = [program.bind({"by": tensor}) for tensor in slots.tensors]
    player, total = Player(torch.device("cpu")), np.zeros((3, 2))
    for first in (1.0, 10.0):
        by = first * np.arange(1, 5)[:, None, None] * np.ones((4, 3, 2))
        slots.fill(by)
        player.play(calls)
        expected = total + np.cumsum(by + table[by[..., 0].astype(int) % 25], 0)
        for n, call in enumerate(calls):
            assert np.array_equal(call.results()["twice"].numpy(), 2 * expected[n])
        total = expected[-1]
    assert np.array_equal(state["total"].numpy(), total)
    assert isinstance(calls[0], PythonCall) == (mode == "none")
    if mode == "inductor":
        assert len(calls[0].records) == min(3, int(threads[:1] or 1))


def test_every_thread_of_a_tape_takes_denormal_numbers_as_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qohort.cohort.native.CALLS_FOR_THREADS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    program = Compiler("inductor", threads=2).program(
        "halves", lambda state, inputs: inputs["small"] * 0.5 * state["kept"], {"kept": torch.ones(2, 3)}
    )
    slots = Slots(1, (2, 3), torch.float32, torch.device("cpu"))
    slots.fill(np.full((1, 2, 3), 2e-38, dtype=np.float32))
    call = program.bind({"small": slots.tensors[0]})
    Player(torch.device("cpu")).play([call])
    assert call.results().tolist() == [[0.0] * 3] * 2
    assert (slots.tensors[0] * 0.5).min() > 0


def test_a_tape_may_have_a_tensor_twice_and_refuses_what_is_no_tensor(capfd: pytest.CaptureFixture[str]) -> None:
    def twice(state: Tensor, x: Tensor) -> list[Tensor]:
        total = x + state
        return [total, total, total.detach(), total.view(total.shape)]

    x, one = torch.ones(2, 3), torch.ones(2, 3)
    call = Compiler("inductor").program("twice", twice, one).bind(x)
    kept = []
    for _ in range(3):
        Player(torch.device("cpu")).play([call])
        kept.append(call.results())
    assert [result.unique().tolist() for results in kept for result in results] == [[2.0]] * 12
    assert capfd.readouterr().err == ""
    refused = Compiler("inductor").program("nothing", lambda state, x: [x + state, None], one).bind(x)
    assert isinstance(refused, PythonCall)
    assert "nothing cannot be played from a tape (it does not return tensors only)" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.matrix
def test_what_fails_in_another_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qohort.cohort.native.CALLS_FOR_THREADS", 1)

    def look_up(state: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
        return state["table"].gather(1, inputs["index"])

    program = Compiler("inductor", threads=2).program("table", look_up, {"table": torch.arange(8.0).view(2, 4)})
    slots = Slots(1, (2, 3), torch.int64, torch.device("cpu"))
    call, player = program.bind({"index": slots.tensors[0]}), Player(torch.device("cpu"))
    slots.fill(np.array([[[0, 1, 2], [3, 3, 4]]]))  # the second member has no fifth entry
    with pytest.raises(RuntimeError, match="index out of bounds"):
        player.play([call])
    slots.fill(np.array([[[0, 1, 2], [3, 3, 0]]]))
    player.play([call])
    assert call.results().tolist() == [[0, 1, 2], [7, 7, 4]]


def test_slots_begin_at_lines_of_the_cache() -> None:
    slots = Slots(5, (3, 7), torch.float32, torch.device("cpu"))
    first = slots.tensors[0].data_ptr()
    assert [(tensor.data_ptr() - first) % 64 for tensor in slots.tensors] == [0] * 5
    assert all(tensor.is_contiguous() for tensor in slots.tensors)
    slots.fill(np.arange(42.0).reshape(2, 3, 7))
    assert slots.tensors[1].flatten().tolist() == list(range(21, 42))
    assert slots.read(2).shape == (2, 3, 7)


def test_many_draws_at_once_are_those_of_single_draws() -> None:
    one, many = (UniformStream([3, 4], "replay", (2,), block=5) for _ in range(2))
    taken = np.concatenate([many.take(count) for count in (1, 3, 9, 0, 4)])
    assert np.array_equal(taken, [one.next().copy() for _ in range(17)])
    assert many.state_dict() == one.state_dict()


def test_numbers_of_adam_ahead_of_time_are_those_of_single_steps() -> None:
    one, many = (MemberAdam([torch.nn.Parameter(torch.zeros(2, 3))], torch.tensor([1e-3, 3e-4])) for _ in range(2))
    rates = np.tile(np.array([1e-3, 3e-4], dtype=np.float32), (6, 1))
    ahead = many.ahead(rates)
    for n in range(6):
        for name, tensor in one.advance().items():
            assert np.array_equal(ahead[name][n], tensor.numpy()), name
    assert many.param_groups[0]["step"] == 6


@pytest.mark.parametrize("name", TENSOR_ENVIRONMENTS)
def test_every_tensor_environment_is_a_vector_environment_of_gymnasium(name: str) -> None:
    envs = gym.make_vec(f"qohort.environments.tensor.registry:qohort/{name.rpartition('/')[2]}", num_envs=3)
    first, _ = envs.reset(seed=[7, 8, 7])
    assert np.array_equal(first[0], first[2])
    again, _ = envs.reset(seed=[7, 8, 7])
    assert np.array_equal(first, again)
    generator = np.random.default_rng(0)
    for _ in range(30):
        action = generator.integers(envs.single_action_space.n, size=3)
        action[2] = action[0]
        observation, reward, terminated, truncated, info = envs.step(action)
        assert envs.observation_space.contains(observation)
        assert np.array_equal(observation[0], observation[2])
        assert (reward[0], terminated[0], truncated[0]) == (reward[2], terminated[2], truncated[2])
        assert ("final_obs" in info) == bool((terminated | truncated).any())


def test_an_episode_that_ends_is_followed_by_the_next_with_its_true_final_observation() -> None:
    envs = TensorVectorEnv(CartPole(max_episode_steps=9), episode_keys([3], 2, "environments"))
    before, ends = envs.observations.copy(), []
    for _ in range(60):
        observation, _, terminated, truncated, info = envs.step(np.array([0, 1]))
        final = info.get("final_obs", observation)
        moved = CartPole().step({"physics": torch.from_numpy(before)}, torch.tensor([0, 1]), torch.zeros(2, 0))[0]
        np.testing.assert_allclose(final, moved["physics"].numpy(), rtol=1e-6)
        ended = terminated | truncated
        assert (np.abs(observation[ended]) <= 0.05).all()
        assert np.array_equal(observation[~ended], final[~ended])
        ends.append([terminated.sum(), truncated.sum()])
        before = observation.copy()
    assert np.min(np.sum(ends, 0)) >= 0
    assert np.sum(ends) >= 12


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"id": "LunarLander-v3"}, "there is no tensor environment for env.id=LunarLander-v3"),
        ({"wrappers": [{"_target_": "gymnasium.wrappers.ClipReward"}]}, "wrappers do not apply to tensor environments"),
        ({"kwargs": {"gravity": 3}}, "has no argument gravity"),
    ],
)
def test_what_has_no_tensor_environment_is_told_or_left_to_gymnasium(changes: dict[str, object], told: str) -> None:
    settings = {"id": "CartPole-v1", "num_envs": 1, "kwargs": {}, "wrappers": [], **changes}
    with pytest.raises(ConfigError, match=told):
        tensor_environment(EnvironmentConfig(**settings, backend="tensor"))  # type: ignore[arg-type]
    assert tensor_environment(EnvironmentConfig(**settings)) is None  # type: ignore[arg-type]
    assert tensor_environment(EnvironmentConfig("CartPole-v1", 1, {}, [], backend="gymnasium")) is None


def test_the_learner_plays_blocks_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = []
    play = QLearning._play

    def count(module: QLearning, block: qohort.agent.rounds.Block) -> None:
        played.append((block.steps, block.updates))
        play(module, block)

    monkeypatch.setattr(QLearning, "_play", count)
    run(tmp_path, [3], *ODD, "compile=none")
    assert sum(steps for steps, _ in played) == 400
    assert sum(updates for _, updates in played) == 2 * len(range(60, 401, 3))


class Greedier(EpsilonGreedy):
    """A user's exploration that inherits `choose` and replaces `act` alone."""

    def act(self, values: object, parameter: object, uniforms: np.ndarray, actions: int) -> np.ndarray:  # type: ignore[override,type-arg]
        """Return action 0."""
        return np.zeros(uniforms.shape[:2], dtype=np.int64)


class SlowAdam(MemberAdam):
    """A user's optimiser that inherits `ahead` and replaces `advance` alone."""

    def advance(self) -> dict[str, Tensor]:
        """Return half of Adam's rate."""
        numbers = super().advance()
        return {**numbers, "rate": numbers["rate"] / 2}


@pytest.mark.slow
@pytest.mark.matrix
def test_a_method_that_is_replaced_takes_its_fast_form_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (*ODD, "compile=none", "env.backend=tensor")
    run(tmp_path, [3], *overrides, "exploration._target_=test_rounds.Greedier")
    assert "Greedier has no method choose of its own, so the environments are stepped" in capsys.readouterr().err
    slow = run(tmp_path, [3], *overrides, "optimizer._target_=test_rounds.SlowAdam")
    monkeypatch.setattr(UniformReplay, "add", lambda self, transition: StoredSteps.add(self, transition), raising=False)
    assert run(tmp_path / "replay", [3], *overrides, "optimizer._target_=test_rounds.SlowAdam") == slow
    assert "UniformReplay has an add of its own, so the environments are stepped" in capsys.readouterr().err
