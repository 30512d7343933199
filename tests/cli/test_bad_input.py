"""Every mistake on the command line ends before any work: one line on stderr, exit code 2, nothing left behind.

Most command lines go through the script's own entry point in this process, which saves the imports; some through a
process of their own.
"""

from __future__ import annotations

import logging
import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

import qohort.runs.training
from matrix import MARKS
from qohort.config.members import check_config

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"

UNKNOWN_KEYS = [
    ("sed=1", "sed=1", "did you mean seed?"),
    ("+sed=1", "sed=1", "did you mean seed?"),
    ("optimizer.lrr=1", "optimizer.lrr=1", "did you mean optimizer.lr?"),
    ("env.idd=x", "env.idd=x", "did you mean env.id?"),
    ("+evaluation.evry=1", "evaluation.evry=1", "did you mean evaluation.every?"),
    ("foo.bar=1", "foo.bar=1", "it must be one of agent, arm, batch_size"),
    ("++foo.bar=1", "foo={bar:1}", "it must be one of agent, batch_size"),
    ("exploration.epsilon.strt=1", "exploration.epsilon.strt=1", "did you mean exploration.epsilon.start?"),
    ("logger.wandb.projct=x", "logger.wandb.projct=x", "did you mean logger.wandb.project?"),
    ("lr=-1", "lr=-1", "did you mean optimizer.lr?"),
    ("replay=none replay.capacity=10", "replay.capacity=10", "replay has no keys"),
    ("seed.x=1", "seed.x=1", "seed is [0,1,2,3,4]"),
    ("optimizer=sgd optimizer.momentum=0.9", "optimizer.momentum=0.9", "write +optimizer.momentum=0.9"),
    ("env.kwargs.foo=1", "env.kwargs.foo=1", "write +env.kwargs.foo=1"),
    ("+network._partial_=true", "network._partial_=true", "it must be one of dueling, dueling_gradient, hidden"),
    ("hydra.sweeper.foo=1", "hydra.sweeper.foo=1", "foldable, max_members, params"),
    ("logger=none logger.wandb.tags=[a]", "logger.wandb.tags=[a]", "logger=wandb is not chosen"),
    ("logger=none ~logger.wandb", "unknown key logger.wandb", "logger=wandb is not chosen"),
    ("~env.kwargs.foo", "env.kwargs.foo", "no foo in env.kwargs to delete"),
    ("optimizer=sgd ~optimizer.momentum", "optimizer.momentum is not set by default\n"),
    ("trainer={a:1}", "trainer={a:1}", "one of cpu, gpu"),
    ("env.kwargs={is_slippery:false}", "is_slippery", "write +env.kwargs={is_slippery:VALUE}"),
    ("hydra/launcher=joblib ~target_network.tau", "unknown key target_network.tau", "one of every"),
]
UNKNOWN_CHOICES = [
    ("agent=dqnn", "agent=dqnn", "did you mean dqn"),
    ("env=cartpol", "env=cartpol", "did you mean cartpole"),
    ("network=resnet", "network=resnet", "impala, linear, minatar, mlp"),
    ("network=", "network=''", "impala, linear, minatar, mlp"),
    ("experiment=nope", "experiment=nope", "cartpole"),
    ("logger=[wandb,cvs]", "logger=cvs", "did you mean csv", "none, tensorboard"),
    ("optimizer=adamm", "optimizer=adamm", "did you mean adam or radam"),
    ("env=null", "env=null", "cartpole"),
    ("+env=acrobot", "+env=acrobot", "without the +"),
    ("env=[cartpole,acrobot]", "env=[cartpole,acrobot]", "-m env=cartpole,acrobot"),
    ("hydra/launcher=nope", "hydra/launcher=nope", "basic"),
]
WRONG_TYPES = [
    ("budget=abc", "budget=abc", "an integer of at least 1"),
    ("budget=1.5", "budget=1.5", "an integer of at least 1"),
    ("budget=1e5", "budget=100000.0", "as 100000"),
    ("gamma=x", "gamma=x", "a number of at least 0 and at most 1"),
    ("gamma={a:1}", "gamma={a:1}", "a number"),
    ("seed=a", "seed=a", "an integer of at least 0 or a list"),
    ("seed=[0,a]", "seed=[0,a]", "an integer of at least 0 or a list"),
    ("seed=-1", "seed=-1", "at least 0"),
    ("seed=1.5", "seed=1.5", "an integer"),
    ("seed={a:1}", "seed={a:1}", "[0,1,2,3,4]"),
    ("overwrite=maybe", "overwrite=maybe", "true or false"),
    ("retry_failed=maybe", "retry_failed=maybe", "true or false"),
    ("normalize_rewards=maybe", "normalize_rewards=maybe", "true or false"),
    ("fold=gamma", "fold=gamma", "{key: number} for each seed"),
    ("seed=0 'fold=[{gamma:x}]'", "gamma=x", "must be a number"),
    ("network.hidden=24", "network.hidden=24", "a list, each an integer of at least 1"),
    ("network.hidden=[24,a]", "network.hidden[1]=a", "an integer of at least 1"),
    ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]", "2 elements"),
    ("optimizer.lr=abc", "optimizer.lr=abc", "a number above 0"),
    ("optimizer=sgd optimizer.lr=abc", "optimizer.lr=abc", "a number"),
    ("trainer=gpu", "trainer.accelerator=gpu", "no GPU"),
    ("trainer.max_epochs=3", "trainer.max_epochs", "set budget"),
    ("+trainer.strategy=ddp", "trainer.strategy", "one device"),
    ("exploration.epsilon=0.1", "exploration.epsilon=0.1", "a group of keys with a _target_"),
    ("+logger.csv=3", "logger.csv=3", "a group of keys with a _target_"),
    ("output_dir=null", "output_dir=null", "text"),
    ("output_dir=2024", "output_dir=2024", "'output_dir=\"2024\"'"),
    ("hydra.job.chdir=maybe", "hydra.job.chdir=maybe", "bool"),
]
OUT_OF_RANGE = [
    ("budget=0", "budget=0", "at least 1"),
    ("gamma=1.5", "gamma=1.5", "at least 0 and at most 1"),
    ("gamma=-1", "gamma=-1", "at least 0 and at most 1"),
    ("gamma=nan", "gamma=nan", "at least 0 and at most 1"),
    ("optimizer.lr=0", "optimizer.lr=0", "above 0"),
    ("optimizer.lr=-1", "optimizer.lr=-1", "above 0"),
    ("optimizer.lr=nan", "optimizer.lr=nan", "above 0"),
    ("optimizer.lr=inf", "optimizer.lr=inf", "above 0"),
    ("batch_size=0", "batch_size=0", "at least 1"),
    ("evaluation.episodes=0", "evaluation.episodes=0", "at least 1"),
    ("exploration.epsilon.start=2", "epsilon.start=2", "between 0 and 1"),
    ("exploration=boltzmann exploration.temperature.end=0", "temperature.end=0", "above 0"),
    ("target_network.every=0", "target_network.every=0", "at least 1"),
    ("target_network=polyak target_network.tau=2", "target_network.tau=2", "above 0 and at most 1"),
    ("max_grad_norm=0", "max_grad_norm=0", "above 0, or null"),
    ("agent=stream_q optimizer.lr=0", "optimizer.lr=0", "above 0"),
    ("agent=stream_q optimizer.trace_decay=1.5", "optimizer.trace_decay=1.5", "at least 0 and at most 1"),
    ("agent=stream_q optimizer.kappa=0", "optimizer.kappa=0", "above 0"),
    ("agent=stream_q network.sparsity=2", "network.sparsity=2", "at least 0 and at most 1"),
    ("env.num_envs=0", "env.num_envs=0", "at least 1"),
    ("network.hidden=[24,0]", "network.hidden[1]=0", "at least 1"),
    ("optimizer.betas=[0.9,1.5]", "optimizer.betas[1]=1.5", "at least 0"),
    ("compile=fast", "compile=fast", "fx, inductor, none"),
    ("checkpoint.minutes=0", "checkpoint.minutes=0", "above 0"),
    ("trainer.accelerator=tpu", "trainer.accelerator=tpu", "auto, cpu, gpu"),
    ("head.loss=mse", "head.loss=mse", "huber, squared"),
]
IMPOSSIBLE = [
    ("seed=[]", "seed=[]", "a list of such integers"),
    ("seed=[1,1]", "seed=[1,1]", "different seeds"),
    ("seed=[1,1] 'fold=[{gamma:0.5},{gamma:0.5}]'", "fold", "twice"),
    ("seed=[1,2] 'fold=[{gamma:0.5}]'", "fold=[{gamma:0.5}]", "for each seed"),
    ("seed=[1,2] 'fold=[{max_grad_norm:10},{gamma:0.5}]'", "max_grad_norm is null for some", "give each a number"),
    ("seed=[1,2] 'fold=[{gamma:0.5},{gama:0.5}]'", "gama", "did you mean gamma?"),
    ("replay.capacity=10 batch_size=64", "replay.capacity=10", "batch_size=64"),
    ("budget=500", "budget=500", "learning_starts=1000"),
    ("budget=10 env.num_envs=20 learning_starts=0", "budget=10", "env.num_envs=20"),
    ("trainer.devices=2", "trainer.devices=2", "one device"),
    ("optimizer=adamw +optimizer.fused=true", "optimizer.fused=true", "remove it"),
    ("exploration.epsilon.duration=10", "exploration.epsilon={", "duration:10", "set the other to null"),
    ("lr_schedule=linear lr_schedule.per=episodes", "lr_schedule", "per=episodes"),
    ("lr_schedule=multiplicative lr_schedule.per=episodes", "lr_schedule.per=episodes", "gradient_steps"),
    (f"output_dir={SCRIPT}", f"output_dir={SCRIPT}", "not a directory"),
    ("exploration=boltzmann bootstrap=expected_sarsa", "bootstrap.epsilon=null", "give a number"),
    (
        "bootstrap=expected_sarsa env.num_envs=2 exploration.spread=7",
        *("bootstrap.epsilon=null", "exploration.spread=7", "give a number"),
    ),
    ("optimizer=sgd optimizer._target_=torch.optim.LBFGS", "torch.optim.LBFGS"),
    ("optimizer=sgd optimizer._target_=torch.optim.Adafactor", "torch.optim.Adafactor", "use another"),
    ("optimizer=sgd +optimizer.momentum=-1", "momentum", "-1"),
    (f"output_dir={'x' * 300}", "output_dir=xxx", "File name too long"),
    ("head=categorical head.v_min=5 head.v_max=1", "v_min=5", "must be below v_max=1"),
    ("replay.n_step=5 replay.capacity=130", "replay.capacity=130", "at least 132"),
    ("replay=lambda", "target_network", "LambdaReplay", "use target_network=none"),
    ("replay=lambda target_network=none head=quantile", "head", "LambdaReplay", "squared or huber"),
    ("replay=lambda target_network=none bootstrap=double", "bootstrap", "use bootstrap=greedy"),
    ("replay=lambda target_network=none replay.blocks=1", "batch_size=128", "more than the 100"),
    ("replay=rollout target_network=none batch_size=3", "train_every=4", "a multiple of batch_size=3"),
    ("agent=rainbow network=linear", "network.dueling=true", "bias"),
    ("optimizer=obgd", "optimizer=obgd", "each transition once", "use replay=none"),
    ("agent=stream_q replay=prioritized", "optimizer=obgd", "use replay=none"),
    ("agent=stream_q head=quantile", "optimizer=obgd", "one value per action", "use head=squared"),
    ("optimizer=obgd replay=none env.num_envs=2", "env.num_envs=2", "optimizer=obgd", "use env.num_envs=1"),
    ("optimizer=obgd replay=none", "train_every=4", "optimizer=obgd", "use train_every=1"),
    ("agent=stream_q gradient_steps=2", "gradient_steps=2", "optimizer=obgd", "use gradient_steps=1"),
]
MISSING = [
    ("sequential.margin=0.1", "sequential.margin=0.1 is for ablations"),
    ("until=seeds", "until=seeds is for ablations", "add -m ablation=NAME"),
    ("seed=", "seed=''", "an integer"),
    ("env.id=null", "env.id=null", "text"),
    ("output_dir=", "output_dir=''", "some text"),
    ("budget=???", "budget has no value", "budget=VALUE"),
    ("optimizer.lr=???", "optimizer.lr has no value", "optimizer.lr=VALUE"),
    ("~gamma", "gamma has no value", "a number of at least 0 and at most 1"),
    ("~gamma=3", "~gamma=3", "gamma is 0.99"),
    ("~env.id", "env.id has no value", "text"),
    ("~env", "~env", "cartpole"),
    ("~seed", "seed has no value", "an integer"),
    ("~nope", "nope", "it must be one of"),
    ("~target_network.every", "target_network.every has no value", "an integer of at least 1"),
    ("gamma='${nope}'", "gamma=${nope}", "give it a value"),
    ("gamma='${gamma}'", "gamma=${gamma}", "give it a value"),
    ("~fold", "~fold", "null already"),
    ("~fold=3", "~fold=3", "fold is null"),
]
MALFORMED = [
    ("budget", "'budget'", "key=value"),
    ("=3", "'=3'", "key=value"),
    ("gamma:1", "'gamma:1'", "key=value"),
    ("'gamma = 1'", "'gamma = 1'", "no space around ="),
    ("gamma==1", "'gamma==1'", "key=value"),
    ("'seed=[0,1'", "'seed=[0,1'", "close every bracket"),
    ("'gamma=(1'", "'gamma=(1'", "close every bracket"),
    ("env@foo=acrobot", "'env@foo=acrobot'", "write env="),
    ("+gamma=0.5", "+gamma=0.5", "without the +"),
    ("seed=1,2", "seed=1,2", "add -m", "seed=[...]"),
    ("agent=dqn,double", "agent=dqn,double", "add -m"),
    ("--foo", "--foo", "key=value"),
    ("-x", "-x", "key=value"),
    ("--multirn seed=0,1", "--multirn", "did you mean --multirun?"),
    ("--cfg nope", "nope", "job"),
    ("--config-name nope", "nope"),
    ("--config-dir nope", "nope"),
    ("--resolve", "--resolve", "--cfg"),
    ("-m --cfg hydra", "--multirun", "--cfg"),
    ("--dry-run --cfg job", "--dry-run", "--cfg"),
    ("-m seed=0,1 hydra/sweeper=basic --dry-run", "--dry-run", "hydra/sweeper=cohort"),
    (f"--config-dir {SCRIPT}", "--config-dir", "no such directory"),
    ("hydra.searchpath=[pkg://nope]", "nope is not available"),
    ("gamma=2 hydra.searchpath=[pkg://nope]", "nope is not available"),
    ("gamma=2 hydra.output_subdir=x", "gamma=2", "at most 1"),
    ("+hydra.callbacks.x._target_=nope.X", "locating target 'nope.X'\n"),
]
TARGETS = [
    ("network._target_=qohort.networks.Nope", "network._target_=qohort.networks.Nope", "qohort.networks has no Nope"),
    ("network._target_=nope.MLP", "network._target_=nope.MLP", "the package nope cannot be imported from here"),
    ("network._target_=qohort.networks", "network._target_=qohort.networks", "a class or function"),
    ("network._target_=math.pi", "network._target_=math.pi", "a class or function"),
    ("network._target_=builtins.eval", "network._target_=builtins.eval", "observation_space and actions and atoms"),
    ("network._target_=qohort.replay.ring.UniformReplay", "UniformReplay", "torch.nn.Module"),
    (
        "replay._target_=qohort.networks.vectors.MLP",
        "replay._target_=qohort.networks.vectors.MLP",
        "a qohort.replay.base.Replay",
    ),
    ("head._target_=builtins.dict", "head._target_=builtins.dict", "qohort.agent.heads.Head"),
    ("optimizer._target_=torch.nn.Linear", "optimizer._target_=torch.nn.Linear", "torch.optim.Optimizer"),
    ("~network._target_", "network={hidden:", "a group of keys with a _target_"),
    ("'env.wrappers=[{_target_:gymnasium.wrappers.Nope}]'", "env.wrappers[0]._target_=gymnasium.wrappers.Nope"),
    ("'env.wrappers=[{_target_:gymnasium.wrappers.TimeLimit}]'", "env.wrappers[0].max_episode_steps has no value"),
]
SWEEPS = [
    ("-m gamma=0.9,2", "gamma=2", "at most 1"),
    ("-m seed=0,1 gamma=abc", "gamma=abc", "a number"),
    ("-m agent=dqn,dqnn", "agent=dqnn", "did you mean dqn"),
    ("-m 'seed=range(0'", "'seed=range(0'", "close every bracket"),
    ("-m replay.capacity=1000,10", "replay.capacity=10", "batch_size=128"),
    ("-m gamma=0.1,range(3)", "gamma=0.1,range(3) is not a sweep", "gamma=A,B"),
    ("-m gamma=range(0)", "gamma=range(0)", "no values"),
    ("-m seed=0,1 trainer={a:1}", "trainer={a:1}", "one of cpu, gpu"),
    ("-m seed=0,1 until=decided", "until=decided is for ablations", "-m ablation=NAME"),
    ("-m seed=0,1 until=decidd", "until=decidd is for ablations"),
    ("-m ablation=cartpole_components until=decidd", "until=decidd", "decided, seeds"),
    ("-m ablation=cartpole_components until=decided sequential.alpha=2", "sequential.alpha=2", "below 1"),
    ("-m ablation=cartpole_components sequential.groups=2", "sequential.groups", "seeds_per_group"),
]
# What only the environment can tell.
AFTER_A_LOOK = [
    ("env.id=Nope-v0", "env.id=Nope-v0", "doesn't exist"),
    ("env.id=nomodule:Nope-v0", "env.id=nomodule:Nope-v0", "nomodule"),
    ("env.id=Pendulum-v1", "env.id=Pendulum-v1", "Discrete"),
    ("env.id=Blackjack-v1 network=nature", "network: this network needs images", "Tuple(Discrete(32)"),
    ("env.id=Blackjack-v1 env.action_mask=true", "env.id=Blackjack-v1", "no info['action_mask']"),
    ("env.id=Blackjack-v1 info_metrics=[length]", "info_metrics=['length']", "rename it"),
    ("+env.kwargs.foo=1", "env.kwargs={'foo': 1}"),
    ("+env.kwargs.max_episode_steps=-5", "max_episode_steps", "cannot be made"),
    ("env=frozenlake network=table +env.kwargs.map_name=5x5", "map_name", "KeyError: '5x5'"),
    ("env=lunarlander +env.kwargs.gravity=5", "gravity", "cannot be made"),
    ("network=table", "qohort: network=table", "use network=linear"),
    (
        "env=frozenlake normalize_observations=true",
        "normalize_observations=true",
        "floats",
        "FrozenLake",
        "Discrete(16)",
    ),
    ("env=cliffwalking agent=stream_q", "normalize_observations=true", "floats", "CliffWalking", "Discrete(48)"),
    ("-m env.id=CartPole-v1,Pendulum-v1", "env.id=Pendulum-v1", "Discrete"),
    ("-m seed=0,1 hydra.sweeper.max_members=0", "hydra.sweeper.max_members=0", "at least 1"),
    ("-m seed=0,1 'hydra.sweeper.foldable=[gama]'", "gama", "did you mean gamma?"),
    ("-m 'gamma=interval(0.5,0.9)'", "interval", "gamma=1,2,3"),
    ("-m ablation=cartpole_components until=decided sequential.max_seeds=31", "max_seeds=31", "more than the 30 seeds"),
    ("hydra.run.dir=/proc/nope", "hydra.run.dir", "/proc/nope"),
]
JARGON = ("struct", "full_key", "object_type", "Traceback", "Error executing", "HYDRA_FULL_ERROR", "search path:")


@dataclass
class Ended:
    """How a command line ended."""

    code: object
    out: str
    err: str


Run = Callable[[str], Ended]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command line in this process and in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the entry point sets it; this puts it back
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def go(line: str) -> Ended:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *shlex.split(line)])
        code: object = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return Ended(code, *capfd.readouterr())

    yield go
    GlobalHydra.instance().clear()
    root.handlers[:], root.level = handlers, level  # Hydra's write to what is captured here only


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training must not begin."""

    def refuse(*_: Any) -> None:
        pytest.fail("training began")

    monkeypatch.setattr(qohort.runs.training, "train_cohort", refuse)


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment may be made."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("an environment was made")

    monkeypatch.setattr(gym, "make", refuse)


def assert_told(ended: Ended, directory: Path, line: str, told: tuple[str, ...], left: Sequence[str] = ()) -> None:
    assert ended.code == 2, f"{line}: exit code {ended.code}, {ended.err}"
    assert ended.out == ""
    assert ended.err.startswith("qohort: ")
    assert ended.err.endswith("\n")
    assert ended.err.count("\n") == 1, ended.err
    for words in told:
        assert words in ended.err
    for words in JARGON:
        assert words not in ended.err
    assert [path.name for path in directory.iterdir()] == list(left)


def cases(*tables: list[Any], every: int = 3) -> Any:
    """Parametrize with the lines of all tables, of which the first and every third one (or fewer) are not slow."""
    lines = [
        pytest.param(line, told, id=line, marks=MARKS if number % every else ())
        for table in tables
        for number, (line, *told) in enumerate(table)
    ]
    return pytest.mark.parametrize(("line", "told"), lines)


@cases(
    UNKNOWN_KEYS,
    UNKNOWN_CHOICES,
    WRONG_TYPES,
    OUT_OF_RANGE,
    IMPOSSIBLE,
    MISSING,
    MALFORMED,
    TARGETS,
    SWEEPS,
    every=6,
)
@pytest.mark.usefixtures("no_training", "no_environment")
def test_told_in_one_line_before_any_environment(run: Run, tmp_path: Path, line: str, told: list[str]) -> None:
    assert_told(run(line), tmp_path, line, tuple(told))


FILES = [
    ("lr_schedule.value: 1", "unknown key lr_schedule.value=1", "write lr_schedule: {value: VALUE}"),
    ("exploration.epsilon.start: 1", "in a file write exploration: {epsilon: {start: VALUE}}"),
    ("env: {kwargs: {options: {25: 7}}}", "env.kwargs.options has the key 25, which is not a text: quote it"),
    ("target_network: {1: 2}", "unknown key target_network.1=2", "one of every"),
    ("trainer: 3", "unknown key trainer.threads=1", "trainer is 3"),
    ("gamma: ${", "mine/experiment/own.yaml cannot be read"),
    ("null: 3", "mine/experiment/own.yaml cannot be read", "NoneType"),
    ("\tgamma: 0.5", "own.yaml", "line 2"),
    ("gamma: 0.5\ngamma: 0.6", "own.yaml cannot be read: line 3, column 1: found duplicate key gamma"),
    ("gamma: !!python/object:os.X {}", "own.yaml cannot be read: line 2, column 8: unknown tag !!python/object:os.X"),
]


@cases(FILES)
@pytest.mark.usefixtures("no_training", "no_environment")
def test_a_mistake_in_a_file_of_ones_own(run: Run, tmp_path: Path, line: str, told: list[str]) -> None:
    file = tmp_path / "mine" / "experiment" / "own.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package _global_\n{line}\n")
    for multirun in ("", "-m "):
        ended = run(f"{multirun}--config-dir={tmp_path}/mine experiment=own trainer.threads=1")
        assert_told(ended, tmp_path, line, tuple(told), left=["mine"])


@cases(AFTER_A_LOOK)
@pytest.mark.usefixtures("no_training")
def test_told_in_one_line_after_a_look_at_the_environment(
    run: Run, tmp_path: Path, recwarn: pytest.WarningsRecorder, line: str, told: list[str]
) -> None:
    assert_told(run(line), tmp_path, line, tuple(told))
    assert [str(one.message) for one in recwarn if issubclass(one.category, UserWarning)] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.usefixtures("no_training")
def test_a_gpu_that_is_not_there(run: Run, tmp_path: Path) -> None:
    line = "trainer.accelerator=gpu"
    assert_told(run(line), tmp_path, line, ("trainer.accelerator=gpu", "no GPU", "cpu"))


@cases(
    [
        ("sed=1", "did you mean seed?"),
        ("gamma=2", "gamma=2", "at most 1"),
        ("env=cartpol", "did you mean cartpole"),
        ("--foo", "--foo"),
        ("-m seed=0,1 gamma=2,3", "gamma=2", "at most 1"),
        ("env.id=Pendulum-v1", "env.id=Pendulum-v1", "Discrete"),
    ]
)
def test_told_by_a_process_of_its_own(tmp_path: Path, line: str, told: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    command = [sys.executable, str(SCRIPT), *shlex.split(line)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert_told(Ended(done.returncode, done.stdout, done.stderr), tmp_path, line, tuple(told))


def test_a_mistake_in_a_number_is_told_without_importing_torch(tmp_path: Path) -> None:
    code = f"""
import runpy, sys
sys.argv = [{str(SCRIPT)!r}, "gamma=2"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert_told(Ended(done.returncode, done.stdout, done.stderr), tmp_path, "gamma=2", ("gamma=2",))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "seed=3",
        "env=acrobot network=linear",
        "logger=[wandb,csv]",
        "logger=none",
        "++gamma=0.5",
        "max_grad_norm=null",
        "optimizer=sgd +optimizer.momentum=0.9",
        "optimizer=sgd optimizer._target_=torch.optim.Adam",
        "exploration.epsilon.fraction=null exploration.epsilon.duration=10 exploration.epsilon.per=episodes",
        "+env.kwargs.max_episode_steps=10",
        "'env.wrappers=[{_target_:gymnasium.wrappers.TimeLimit,max_episode_steps:7}]'",
        "gamma='${exploration.epsilon.start}'",
        "replay=none target_network=none lr_schedule=linear",
        "agent=stream_q env=acrobot head=huber optimizer.lr=0.5",
        "env=mountaincar env.num_envs=2 normalize_observations=true normalize_rewards=true",
    ],
)
def test_right_command_lines_are_taken(run: Run, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    taken: list[DictConfig] = []
    monkeypatch.setattr(qohort.runs.training, "train", taken.append)
    ended = run(line)
    assert (ended.code, ended.err) == (0, "")
    assert len(taken) == 1
    check_config(taken[0])


def test_a_sweep_runs_every_job(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[DictConfig] = []
    monkeypatch.setattr(qohort.runs.training, "train", taken.append)
    ended = run("-m 'seed=range(0,2)' gamma=0.9,0.99 hydra/sweeper=basic")
    assert (ended.code, ended.err) == (0, "")
    assert [(one.seed, one.gamma) for one in taken] == [(0, 0.9), (0, 0.99), (1, 0.9), (1, 0.99)]
    taken.clear()
    ended = run("-m 'seed=range(0,2)' gamma=0.9,0.99 env=cartpole,acrobot")
    assert (ended.code, ended.err) == (0, "")
    runs = [(0, 0.9), (0, 0.99), (1, 0.9), (1, 0.99)]
    assert [[(one.seed, one.gamma) for one in check_config(job)] for job in taken] == [runs, runs]
    assert [job.env.id for job in taken] == ["CartPole-v1", "Acrobot-v1"]


@pytest.mark.parametrize("sweeper", ["cohort", "basic"])
def test_a_sweep_may_refer_to_hydras_node(run: Run, monkeypatch: pytest.MonkeyPatch, sweeper: str) -> None:
    taken: list[DictConfig] = []
    monkeypatch.setattr(qohort.runs.training, "train", lambda config: taken.append(check_config(config)[0]))
    where = "'output_dir=${hydra:runtime.cwd}/${hydra:runtime.choices.env}' hydra.sweep.dir=."
    ended = run(f"-m env=cartpole,acrobot seed=1 {where} hydra/sweeper={sweeper}")
    assert (ended.code, ended.err) == (0, "")
    assert [Path(one.output_dir).name for one in taken] == ["cartpole", "acrobot"]


@pytest.mark.parametrize("line", ["--cfg job", "--cfg job logger=[wandb,csv] seed=3", "--help", "--info defaults"])
def test_options_that_only_tell_something(run: Run, tmp_path: Path, line: str) -> None:
    ended = run(line)
    assert (ended.code, ended.err) == (0, "")
    assert "budget" in ended.out or "cartpole" in ended.out
    assert list(tmp_path.iterdir()) == []


def test_loggers_are_composed(run: Run) -> None:
    both, none = run("--cfg job logger=[wandb,csv]").out, run("--cfg job logger=none").out
    assert "wandb:" in both
    assert "csv:" in both
    assert "logger: {}" in none


def test_a_crash_is_not_taken_for_a_mistake(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(config: DictConfig) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(qohort.runs.training, "train", crash)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("seed=3")
