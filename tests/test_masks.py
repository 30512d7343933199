"""Action masks: a masked action is never chosen, and never bootstrapped from."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hydra import compose, initialize_config_dir
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import masked
from qohort.agent.bootstrap import Bootstrap, Double, ExpectedSarsa, Greedy, Soft
from qohort.agent.evaluation import Evaluator, random_actions
from qohort.agent.exploration import Boltzmann, EpsilonGreedy, nth_allowed
from qohort.agent.heads import Categorical, Expected, Head, ImplicitQuantile, Quantile
from qohort.agent.q_values import QValues, network_maker
from qohort.agent.td_loss import TDLoss
from qohort.cohort.program import Compiler
from qohort.cohort.schedules import ConstantSchedule
from qohort.cohort.stacking import CohortNetwork
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError, RunsFailed
from qohort.config.schema import EnvironmentConfig, EvaluationConfig
from qohort.environments.making import make_environment
from qohort.environments.tensor.registry import tensor_environment
from qohort.networks.packing import PackedSpace, masks_of, without_masked
from qohort.replay.lambda_returns import lambda_returns
from qohort.runs.loading import load
from qohort.runs.training import train

GAMMA = 0.9
MASKED = ("env.id=masked:MaskedChain-v0", "env.action_mask=true")
SHORT = (
    *MASKED,
    f"gamma={GAMMA}",
    "compile=none",
    "logger=none",
    "trainer.progress_bar=false",
    "network.hidden=[16]",
    "budget=200",
    "batch_size=16",
    "learning_starts=50",
    "log_every=50",
    "evaluation.every=150",
    "evaluation.episodes=2",
    "evaluation.epsilon=0.3",
    "evaluation.max_episode_steps=10",
)


def run(directory: Path, seeds: list[int], *overrides: str) -> dict[int, str]:
    """Train a cohort; each seed's fingerprint."""
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        seed = f"seed={seeds}".replace(" ", "")
        config = compose("train", [*overrides, seed, f"output_dir={directory}"])
    return {result["seed"]: result["fingerprint"] for result in train(config)}


# The loss


def look_up(parameters: Any, observation: Tensor, normal: Any, fractions: Tensor | None) -> Tensor:
    """A table of outputs: each observation is the number of a row."""
    outputs: Tensor = parameters["table"][observation]
    if fractions is None:
        return outputs
    return outputs + fractions.unsqueeze(1)  # quantiles that differ by their fraction


def look_up_allowed(parameters: Any, observation: Tensor, normal: Any, fractions: Tensor | None) -> Tensor:
    """The table of one observation, from which the actions that are masked there are missing."""
    return look_up(parameters, observation, normal, fractions)[:, ALLOWED[int(observation)]]


ALLOWED = torch.tensor([[True, False, True, True], [False, True, False, False], [True, True, True, False]])
HEADS: dict[str, Head] = {
    "expected": Expected(),
    "categorical": Categorical(v_min=-3, v_max=3, atoms=7),
    "quantile": Quantile(quantiles=5),
    "implicit quantile": ImplicitQuantile(online_samples=3, target_samples=4, policy_samples=6),
}
BOOTSTRAPS: dict[str, Bootstrap] = {
    "greedy": Greedy(),
    "double": Double(),
    "soft": Soft(alpha=0.9, temperature=0.3),
    "expected sarsa": ExpectedSarsa(epsilon=0.3),
}


def batch_of(head: Head) -> Any:
    """Six transitions between three states; the third and the last one end."""
    generator = torch.Generator().manual_seed(1)
    batch = {
        "observation": torch.tensor([0, 0, 1, 2, 2, 2]),
        "action": torch.tensor([0, 3, 1, 0, 1, 2]),
        "reward": torch.rand(6, generator=generator),
        "discount": torch.tensor([0.9, 0.81, 0.0, 0.9, 0.9, 0.0]),
        "next_observation": torch.tensor([1, 0, 2, 2, 1, 0]),
    }
    for use, count in (head.fractions or {}).items():
        batch[f"fractions_{use}"] = torch.rand(6, count, generator=generator)
    return batch


def tables(head: Head) -> tuple[Any, Any]:
    """Outputs of the online and the target network, where masked actions look best."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 4, 1) if head.fractions is not None else (3, 4, head.atoms)
    pair = []
    for _ in range(2):
        table = torch.randn(shape, generator=generator)
        rise = torch.linspace(-9, 9, shape[-1]) if isinstance(head, Categorical) else torch.full(shape[-1:], 50.0)
        pair.append({"table": torch.where(ALLOWED.unsqueeze(-1), table, table + rise)})
    return pair[0], pair[1]


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
@pytest.mark.parametrize("head", HEADS)
def test_a_masked_action_might_as_well_not_exist(head: str, bootstrap: str) -> None:
    """Each sample's TD error equals that of a table in which its masked actions are missing."""
    ours, rule = HEADS[head], BOOTSTRAPS[bootstrap]
    online, target = tables(ours)
    batch = batch_of(ours)
    _, terms = TDLoss(look_up, rule, ours, lambda observation: ALLOWED[observation])(online, target, batch)
    assert terms.td_error.isfinite().all()
    _, unmasked = TDLoss(look_up, rule, ours)(online, target, batch)
    assert not torch.allclose(terms.td_error, unmasked.td_error, atol=0.5)
    for i in range(6):
        sample = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        state = int(sample["observation"])
        position = int(ALLOWED[state][: int(sample["action"])].sum())
        _, one = TDLoss(look_up_allowed, rule, ours)(online, target, {**sample, "action": torch.tensor([position])})
        torch.testing.assert_close(terms.td_error[i : i + 1], one.td_error, rtol=1e-4, atol=1e-4)


def by_hand(rule: Bootstrap, action: int = 0) -> float:
    """The TD target of a reward of 1 with discount 0.5, where the second of three next actions is masked."""
    online = {"table": torch.tensor([[[0.0], [0.0], [0.0]], [[3.0], [9.0], [1.0]]])}
    target = {"table": torch.tensor([[[2.0], [8.0], [1.0]], [[4.0], [100.0], [5.0]]])}
    mask = torch.tensor([[True, False, True], [True, False, True]])
    batch = {
        "observation": torch.tensor([0]),
        "action": torch.tensor([action]),
        "reward": torch.tensor([1.0]),
        "discount": torch.tensor([0.5]),
        "next_observation": torch.tensor([1]),
    }
    _, terms = TDLoss(look_up, rule, Expected(), lambda observation: mask[observation])(online, target, batch)
    return float(terms.td_error[0])  # the prediction is 0


def test_targets_by_hand() -> None:
    assert by_hand(Greedy()) == 1 + 0.5 * 5  # and not 100
    assert by_hand(Double()) == 1 + 0.5 * 4  # the online network prefers the first, and not the second with 9
    assert by_hand(ExpectedSarsa(epsilon=0.2)) == pytest.approx(1 + 0.5 * (0.9 * 5 + 0.1 * 4))
    # Soft with temperature 1: log-sum-exp of 4 and 5, plus 0.5 times the log-policy of the first of 2 and 1.
    value = np.log(np.exp(4) + np.exp(5))
    bonus = 0.5 * (2 - np.log(np.exp(2) + np.exp(1)))
    assert by_hand(Soft(alpha=0.5, temperature=1.0)) == pytest.approx(1 + bonus + 0.5 * value, rel=1e-6)


def test_greedy_is_greedy_among_the_allowed_actions() -> None:
    """The eligibility traces of Stream Q are cut where an action is not greedy."""
    table = {"table": torch.tensor([[[1.0], [9.0], [0.0]]])}
    mask = torch.tensor([[True, False, True]])
    batch = {
        "observation": torch.tensor([0, 0]),
        "action": torch.tensor([0, 2]),
        "target": torch.tensor([0.0, 0.0]),
    }
    _, terms = TDLoss(look_up, Greedy(), Expected(), lambda observation: mask[observation])(table, table, batch)
    assert terms.greedy.tolist() == [True, False]


def test_values_of_allowed_actions_are_above_those_of_masked_ones_whatever_they_are() -> None:
    values = torch.tensor([[-torch.inf, 3.0, torch.nan, 1.0]])
    masked_values = without_masked(values, torch.tensor([[True, False, True, False]]))
    assert (masked_values == -torch.inf).tolist() == [[False, True, False, True]]
    assert masked_values.argmax(-1).item() == 2
    assert without_masked(values[:, :2], torch.tensor([[True, False]])).argmax(-1).item() == 0


def test_the_values_of_a_cohort_are_masked() -> None:
    space = masks_of(make_environment(config()).observation_space)
    assert space is not None
    head = Expected()
    node = {"_target_": "qohort.networks.vectors.MLP", "hidden": [5]}
    network = CohortNetwork(network_maker(node, space, masked.ACTIONS, head), [0, 1])
    rows = torch.zeros((2, masked.LENGTH, *space.shape), dtype=torch.uint8)
    for state in range(masked.LENGTH):
        row = np.zeros(space.shape, np.uint8)
        row[:8] = np.frombuffer(np.int64(state).tobytes(), np.uint8)
        space.put_mask(row, np.array(masked.allowed(state)))
        rows[:, state] = torch.from_numpy(row)
    free = QValues(network, head, Compiler("none"))(rows)
    values = QValues(network, head, Compiler("none"), space.allowed)(rows)
    allowed = torch.tensor([masked.allowed(state) for state in range(masked.LENGTH)]).expand_as(values)
    assert torch.equal(values[allowed], free[allowed])
    assert (values[~allowed] == -torch.inf).all()
    states = torch.arange(masked.LENGTH)
    inner = CohortNetwork(network_maker(node, spaces.Discrete(masked.LENGTH), masked.ACTIONS, head), [0, 1])
    assert torch.equal(inner(states.expand(2, -1)).squeeze(-1), free)


# Acting


def random_masks(shape: tuple[int, ...], seed: int) -> Any:
    """Masks that allow at least one action."""
    rng = np.random.default_rng(seed)
    allowed = rng.random(shape) < 0.4
    allowed[np.arange(shape[0])[:, None], np.arange(shape[1]), rng.integers(shape[-1], size=shape[:2])] = True
    return allowed


def test_random_actions_are_uniform_among_those_allowed() -> None:
    allowed = np.array([[True, False, True, True]])
    uniforms = np.array([0.0, 0.33, 0.34, 0.66, 0.67, 1 - 2**-53])
    assert [int(nth_allowed(allowed, np.array([u]))[0]) for u in uniforms] == [0, 0, 2, 2, 3, 3]
    one = np.array([[False, False, True, False]])
    assert {int(nth_allowed(one, np.array([u]))[0]) for u in uniforms} == {2}


@pytest.mark.parametrize("parameter", [0.0, 0.5, 1.0])
def test_no_exploration_chooses_a_masked_action(parameter: float) -> None:
    rng = np.random.default_rng(0)
    schedule = ConstantSchedule(max(parameter, 0.01))
    for seed in range(30):
        allowed = random_masks((2, 5, 6), seed)
        values = without_masked(torch.from_numpy(rng.normal(size=allowed.shape)), torch.from_numpy(allowed)).numpy()
        for exploration in (EpsilonGreedy(schedule, spread=2.0), Boltzmann(schedule)):
            uniforms = rng.random((2, 5, exploration.draws(6)))
            uniforms[0, 0] = 0.0  # whose Gumbel noise is -inf
            of_members = np.full(2, max(parameter, 0.01) if isinstance(exploration, Boltzmann) else parameter)
            action = exploration.act(lambda values=values: values, of_members, uniforms, 6, allowed=allowed)
            assert np.take_along_axis(allowed, action[..., None], -1).all()


def test_evaluation_explores_among_the_allowed_actions() -> None:
    allowed = torch.from_numpy(random_masks((3, 50, 4), 0))
    greedy = allowed.int().argmax(-1)
    uniforms = torch.rand(3, 50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    action = random_actions(greedy, 4, uniforms, 1.0, allowed)
    assert allowed.gather(-1, action.unsqueeze(-1)).all()
    assert (action != greedy).any()
    expected = nth_allowed(allowed.numpy(), uniforms[..., 1].numpy())
    assert action.tolist() == expected.tolist()


# Environments


def config(**kwargs: Any) -> EnvironmentConfig:
    return EnvironmentConfig("masked:MaskedChain-v0", 1, kwargs, [], action_mask=True)


@pytest.mark.parametrize("where", ["info", "observation"])
def test_a_mask_is_packed_with_its_observation(where: str) -> None:
    env = make_environment(config(where=where))
    space = masks_of(env.observation_space)
    assert space is not None
    chain: Any = env.unwrapped
    assert space.unpacked == spaces.Discrete(masked.LENGTH)  # the only other value of a Dict is as it is
    row, _ = env.reset(seed=1)
    state = chain._state
    assert space.unpack(torch.from_numpy(row).unsqueeze(0)).item() == state
    assert space.allowed_array(row).tolist() == masked.allowed(state)
    row, *_ = env.step(masked.RIGHT)
    assert space.unpack(torch.from_numpy(row).unsqueeze(0)).item() == state + 1
    assert space.allowed(torch.from_numpy(row)).tolist() == masked.allowed(state + 1)


def test_the_masks_of_taxi_are_gymnasiums() -> None:
    env = make_environment(EnvironmentConfig("Taxi-v4", 1, {}, [], action_mask=True))
    space = masks_of(env.observation_space)
    assert space is not None
    assert space.unpacked == spaces.Discrete(500)
    row, info = env.reset(seed=3)
    for action in (0, 1, 2, 3):
        assert space.allowed_array(row).tolist() == (info["action_mask"] == 1).tolist()
        row, *_, info = env.step(action)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            "nothing",
            r"step\(\) returned info\['action_mask'\] that allows no action, but the episode has not terminated",
        ),
        ("shape", r"step\(\) returned info\['action_mask'\]=array\(.*\): it must have 4 integers, 1 where"),
        ("dtype", r"step\(\) returned info\['action_mask'\]=array\(.*\): it must have 4 integers, 1 where"),
        ("missing", r"step\(\) returned no info\['action_mask'\], which env.action_mask=true needs"),
    ],
)
def test_a_wrong_mask_is_one_line_that_names_the_environment(tmp_path: Path, wrong: str, told: str) -> None:
    overrides = (*SHORT, f"+env.kwargs.wrong={wrong}")
    with pytest.raises((ConfigError, RunsFailed), match=rf"env.id=masked:MaskedChain-v0: {told}") as error:
        run(tmp_path, [0], *overrides)
    assert "\n" not in str(error.value)


def test_masks_that_are_not_used_are_reported_once(tmp_path: Path, capfd: Any) -> None:
    for _ in range(2):
        run(tmp_path, [0], *SHORT, "env.action_mask=false", "env.id=Taxi-v4", "evaluation.max_episode_steps=5")
    line = "qohort: env.id=Taxi-v4 gives an action mask, which is not used: set env.action_mask=true"
    assert capfd.readouterr().err.count(line) == 1


class Careless(EpsilonGreedy):
    def act(self, values: Any, parameter: Any, uniforms: Any, actions: int) -> Any:  # type: ignore[override]
        raise NotImplementedError


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["env.id=CartPole-v1"], r"returned no info\['action_mask'\]"),
        (["exploration._target_=test_masks.Careless"], "exploration=test_masks.Careless does not know action masks"),
    ],
)
def test_what_has_no_masks_is_refused(tmp_path: Path, overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        run(tmp_path, [0], *SHORT, *overrides)


def test_a_tensor_environment_is_not_taken_with_masks() -> None:
    wanted = EnvironmentConfig("CartPole-v1", 1, {}, [], action_mask=True)
    assert tensor_environment(wanted) is None
    with pytest.raises(ConfigError, match=r"env.backend=tensor: tensor environments have no action masks; use auto or"):
        tensor_environment(replace(wanted, backend="tensor"))


def test_actions_that_are_not_discrete_have_no_mask() -> None:
    with pytest.raises(ConfigError, match="an action mask needs Discrete actions"):
        make_environment(EnvironmentConfig("Pendulum-v1", 1, {}, [], action_mask=True))


def test_evaluation_never_chooses_a_masked_action() -> None:
    """The environment raises an error where one does; values of masked actions are the greatest."""
    evaluation = EvaluationConfig(1, 8, 0.5, 20)
    evaluator = Evaluator(config(), evaluation, [0, 1], torch.device("cpu"))
    space = evaluator._masks
    assert space is not None

    def values(observation: Tensor) -> Tensor:
        return without_masked(torch.arange(4.0).expand(*observation.shape[:2], 4), space.allowed(observation))

    scores = evaluator(values, 1)
    assert not scores.failures
    assert (scores.returns > 0.5).all()
    evaluator.close()


# Runs


VARIANTS = {
    "dqn": (),
    "nstep, two environments": ("agent=nstep", "env.num_envs=2", "replay.capacity=100"),
    "rainbow, in the observation": ("agent=rainbow", "+env.kwargs.where=observation", "head.v_min=-1", "head.v_max=2"),
    "m_iqn": ("agent=m_iqn", "network.hidden=[8]"),
    "expected sarsa, boltzmann": ("bootstrap=expected_sarsa", "bootstrap.epsilon=0.1", "exploration=boltzmann"),
    "dqn_lambda": ("agent=dqn_lambda", "replay.block=10", "replay.blocks=10", "replay.watkins=true"),
    "pqn": ("agent=pqn", "train_every=40", "batch_size=20", "gradient_steps=4", "network.hidden=[16]"),
    "stream_q": ("agent=stream_q", "normalize_observations=false", "network.hidden=[16]", "network.sparsity=0.5"),
    "workers": ("env.workers=2", "env.num_envs=2"),
}


def overrides_of(name: str) -> tuple[str, ...]:
    mine = VARIANTS[name]
    dropped = ("learning_starts",) if name == "pqn" else ()
    return (*(one for one in SHORT if not one.startswith(dropped or ("?",))), *mine)


FAST = "nstep, two environments"


@pytest.mark.parametrize(
    "name", [one if one == FAST else pytest.param(one, marks=pytest.mark.slow) for one in VARIANTS]
)
def test_a_member_is_the_same_alone_in_a_cohort_and_resumed(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    overrides = overrides_of(name)
    alone = run(tmp_path / "alone", [3], *overrides)
    pair = run(tmp_path / "pair", [3, 0], *overrides)
    assert alone[3] == pair[3] != pair[0]
    resumed(monkeypatch, tmp_path / "resumed", 3, overrides, alone[3])


def resumed(monkeypatch: Any, directory: Path, seed: int, overrides: tuple[str, ...], expected: str) -> None:
    """Interrupt a run in its middle, and check that it ends with the same fingerprint when it is resumed."""
    from qohort.agent.learner import QLearning
    from qohort.config.errors import Interrupted
    from qohort.runs.interruption import STOP

    between = QLearning.between_steps

    def interrupted(self: QLearning) -> None:
        if self.progress.env_steps >= 130:
            STOP.signal = "SIGTERM"
        between(self)

    with monkeypatch.context() as patched:
        patched.setattr(QLearning, "between_steps", interrupted)
        with pytest.raises(Interrupted):
            run(directory, [seed], *overrides)
    STOP.signal = None
    assert run(directory, [seed], *overrides)[seed] == expected


def test_a_policy_takes_masks(tmp_path: Path) -> None:
    run(tmp_path, [0], *SHORT)
    policy = load(next(tmp_path.glob("*/*/seed-0")))
    values = policy.values(0, action_mask=[0, 1, 1, 0])
    assert np.isneginf(values).tolist() == [True, False, False, True]
    for mask in ([0, 0, 0, 1], np.array([False, True, False, False])):
        assert policy.act(2, action_mask=mask) == int(np.argmax(mask))
    masks = np.eye(4, dtype=np.int8)[[1, 3, 0]]
    assert policy.act([0, 1, 2], action_mask=masks).tolist() == [1, 3, 0]
    seen = {"observation": 2, "action_mask": np.array([0, 1, 0, 0])}
    assert policy.act(seen) == 1
    with pytest.raises(ValueError, match="was trained with action masks"):
        policy.act(0)


@pytest.mark.slow
def test_compiled_masks_are_the_same_alone_and_in_a_cohort(tmp_path: Path) -> None:
    overrides = (
        *(one for one in SHORT if one != "compile=none"),
        "compile=fx",
        "agent=munchausen",
        "network.hidden=[8]",
    )
    assert run(tmp_path / "alone", [3], *overrides)[3] == run(tmp_path / "pair", [3, 0], *overrides)[3]


def test_lambda_returns_bootstrap_from_allowed_actions_only() -> None:
    values = without_masked(torch.tensor([[1.0, 9.0], [2.0, 3.0]]), torch.tensor([[True, False], [True, True]]))
    value = values.numpy().max(-1)
    returns = lambda_returns(np.array([0.0, 1.0]), np.array([0.5, 0.5]), value, np.array([0.5, 0.5]))
    last = 1 + 0.5 * 3
    np.testing.assert_allclose(returns, [0.5 * (0.5 * 1 + 0.5 * last), last])


def test_packed_spaces_are_equal_if_they_pack_alike() -> None:
    one = PackedSpace(spaces.Discrete(3), 2)
    assert one == PackedSpace(spaces.Discrete(3), 2)
    assert one != PackedSpace(spaces.Discrete(3))
    assert one != PackedSpace(spaces.Discrete(4), 2)
    assert str(one) == "Discrete(3) with an action mask"
