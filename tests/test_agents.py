"""Every agent file and every pair of switches trains as a cohort, to the same bits alone, and goes on exactly."""

import itertools
from pathlib import Path

import pytest

import test_exactness
from matrix import matrix
from qohort.config.composition import CONFIG_DIRECTORY
from test_exactness import ODD, interrupt_at, rows_less_wall_times, run

AGENTS = sorted(file.stem for file in (CONFIG_DIRECTORY / "agent").glob("*.yaml"))
SMALL = (*ODD, "compile=none", "budget=300")
ROLLOUT = ("batch_size=12", "train_every=48", "gradient_steps=8", "env.num_envs=3", "network.hidden=[37,21]")
OWN = {
    "pqn": (*ROLLOUT, "compile=none", "budget=300"),
    "dqn_lambda": (*SMALL, "replay.block=7", "replay.blocks=9"),
    "stream_q": ("network.hidden=[37,21]", "network.sparsity=0.7", "learning_starts=0", "compile=none", "budget=300"),
}

SWITCHES = {
    "bootstrap=double": (),
    "bootstrap=soft": (),
    "bootstrap=expected_sarsa": (),
    "head=huber": (),
    "head=categorical": ("head.atoms=9",),
    "head=quantile": ("head.quantiles=7",),
    "head=implicit_quantile": ("head.online_samples=5", "head.target_samples=4", "head.policy_samples=3"),
    "network.dueling=true": (),
    "network.noisy=true": (),
    "network.layer_norm=false": (),
    "replay=prioritized": (),
    "replay.n_step=3": (),
    "target_network=polyak": ("target_network.tau=0.05",),
    "optimizer=rmsprop": (),
    "env.num_envs=3": (),
}


def options(agent: str) -> tuple[str, ...]:
    small = tuple(one for one in OWN.get(agent, SMALL) if not one.startswith("target_network"))
    return (f"agent={agent}", *small)


def test_every_agent_has_a_preset_that_is_named_as_its_file() -> None:
    for agent in AGENTS:
        assert f"\nagent: {agent}\n" in (CONFIG_DIRECTORY / "agent" / f"{agent}.yaml").read_text()
    assert {"dqn", "double", "rainbow", "rainbow_minus_noisy", "m_iqn", "pqn", "dqn_lambda", "stream_q"} <= {*AGENTS}


FAST = ("pqn",)


@pytest.mark.parametrize("agent", matrix(AGENTS, FAST))
def test_a_member_of_every_agent_is_the_same_alone_in_a_cohort_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    overrides = (*options(agent), "checkpoint.every=90")
    undisturbed = run(tmp_path / "undisturbed", [0, 3], *overrides)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 201)
        with pytest.raises(test_exactness.Interrupted):
            run(tmp_path / "resumed", [0, 3], *overrides)
    alone = run(tmp_path / "resumed", [3], *overrides)
    both = run(tmp_path / "resumed", [0, 3], *overrides)
    assert alone[3] == undisturbed[3] != undisturbed[0]
    assert both == undisturbed
    assert rows_less_wall_times(tmp_path / "resumed") == rows_less_wall_times(tmp_path / "undisturbed")
    fresh = run(tmp_path / "fresh", [3], *overrides, "checkpoint.every=1000")
    assert fresh[3] == undisturbed[3]


def together(first: str, second: str) -> bool:
    return first.partition("=")[0] != second.partition("=")[0]


@pytest.mark.parametrize("first", matrix(SWITCHES, []))
def test_every_pair_of_switches_trains_as_a_cohort(tmp_path: Path, first: str) -> None:
    later = itertools.dropwhile(lambda one: one != first, SWITCHES)
    for number, second in enumerate(later):
        if second != first and not together(first, second):
            continue
        overrides = ("budget=300", "compile=none", "network.hidden=[6]", "batch_size=8")
        chosen = dict.fromkeys((first, *SWITCHES[first], second, *SWITCHES[second]))
        groups = sorted(chosen, key=lambda one: "." in one.partition("=")[0])
        finished = run(tmp_path / str(number), [0, 1], *overrides, *groups)
        assert len(set(finished.values())) == 2, second
