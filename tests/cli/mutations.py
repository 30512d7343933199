"""Command lines and configurations with mistakes in them, drawn at random: one of `case(number)` for each number."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).parents[2] / "conf"


def _words(text: str) -> list[str]:
    return text.split()


BASE = [
    "seed=[0,1]",
    "budget=40",
    "batch_size=4",
    "train_every=4",
    "learning_starts=8",
    "log_every=10",
    "evaluation.every=20",
    "evaluation.episodes=1",
    "evaluation.max_episode_steps=10",
    "compile=none",
    "logger=none",
    "trainer.progress_bar=false",
]
"""A run that takes a moment."""

VALUES = _words("""
null ??? true false nan inf -inf -nan .inf -1 -0 0 -0.0 1 2 7 0.5 1.5 -0.5 1e-400 1e400 1e30 1e-30 1_000 0x10 010 1e5
1000000000000000000 9223372036854775807 9223372036854775808 -9223372036854775809 99999999999999999999999 4294967296
abc 'a b' "a" '' "" 'it\\'s' é 日本 🎲 a/b a.b a:b . .. / ~ - + @x %s $x # * ! & | < > ? \\ ` ^ a\\,b a=b = [] [[]] [1]
[0.5] [-1] [1,2,3] [a] [null] [1,[2]] [{a:1}] {} {a:1} {a:{b:[1]}} {1:2} {a:null} {_target_:x} {_target_:null} [ ] { }
( ) [1 1] {a {a:1 (1 ' " [1,] {,} [{]} 1, ,1 , 1,2 1,a a,b range(3) range(0,3) range(0) range(a) range(0,1,0)
interval(0,1) choice(1,2) choice() shuffle(1,2) shuffle(range(3)) glob(*) glob(a*) sort(2,1) tag(a,1,2) int(3.5)
int(a) float(1) str(1) bool(x) bool(1) json_str([1]) extend_list(1) nope(1) int( ${nope} ${budget} ${seed} ${env}
${env.id} ${gamma} ${gamma ${} $ ${.a} ${..budget} ${optimizer.lr} ${seed[0]} ${seed.5} ${oc.env:NOPE}
${oc.env:NOPE,1} ${oc.env:HOME} ${nope:1} ${oc.decode:'['} ${oc.decode:1} ${now:%Y} ${hydra:runtime.cwd}
${oc.create:{a:1}} ${oc.select:nope} ${oc.select:nope,3} ${oc.deprecated:gamma} ${python_version:} ${hydra:job.num}
""")
"""What a value may turn into."""

ENVIRONMENTS = _words("""
Nope-v0 CartPole-v0 CartPole-v9 CartPole cartpole CartPole-v1 Pendulum-v1 Blackjack-v1 MountainCarContinuous-v0
Taxi-v3 FrozenLake-v1 FrozenLake8x8-v1 CliffWalking-v1 CliffWalkingSlippery-v1 Acrobot-v1 MountainCar-v0
nomodule:Nope-v0 os:Nope-v0 :CartPole-v1 a:b:c ALE/Pong-v5 MinAtar/Breakout-v1 BipedalWalker-v3 LunarLander-v3 Ant-v5
phys2d/CartPole-v1 tabular/Blackjack-v0 GymV21Environment-v0 CartPole-v1/x ../CartPole-v1 Cart\\ Pole-v1
""")

TARGETS = _words("""
qohort.networks.vectors.MLP qohort.networks.vectors.LinearNetwork qohort.networks.vectors.TableNetwork
qohort.networks.layers.LayerNorm qohort.networks.layers.Features qohort.networks qohort qohort.nope.X nope.X MLP .
.. a..b .MLP qohort.networks. qohort.networks.vectors.MLP.forward qohort.td_loss.Greedy qohort.td_loss.Squared
qohort.td_loss.Bootstrap qohort.td_loss.Head qohort.agent.target_networks.NoTarget
qohort.agent.target_networks.HardTarget qohort.agent.target_networks.PolyakTarget qohort.replay.ring.UniformReplay
qohort.replay.newest.NewestTransition qohort.cohort.schedules.ConstantSchedule
qohort.cohort.schedules.LinearSchedule qohort.cohort.schedules.MultiplicativeSchedule
qohort.agent.exploration.EpsilonGreedy qohort.agent.exploration.Boltzmann qohort.agent.optimizers.MemberAdam
qohort.runs.loggers.WandbSink qohort.runs.loggers.LightningSink torch.optim.Adam torch.optim.SGD torch.optim.LBFGS
torch.optim.SparseAdam torch.optim.Rprop torch.optim.ASGD torch.optim.Adadelta torch.optim.Adagrad torch.optim.NAdam
torch.optim.RAdam torch.optim.Adamax torch.optim.Adafactor torch.optim.Muon torch.optim.Optimizer torch.optim
torch.nn.Linear torch.nn.Identity torch.nn.Module torch.nn.Sequential torch.tensor torch.Tensor builtins.dict
builtins.list builtins.int builtins.eval builtins.print builtins.object builtins.type builtins.None builtins.open
math.pi math.sqrt os.getcwd operator.add functools.partial gymnasium.Wrapper gymnasium.make
gymnasium.wrappers.TimeLimit gymnasium.wrappers.FlattenObservation gymnasium.wrappers.NormalizeReward
gymnasium.wrappers.TransformReward
""")

HYDRA = _words("""
hydra.run.dir=x hydra.run.dir=/proc/x hydra.run.dir=null hydra.run.dir=${nope} hydra.output_subdir=x
hydra.output_subdir=1 hydra.job.chdir=true hydra.job.chdir=maybe hydra.job.name=x hydra.job.env_set.A=b
hydra.verbose=true hydra.verbose=[x] hydra.verbose=x hydra.sweep.dir=x hydra.sweep.subdir=x hydra.launcher=x
hydra/launcher=basic hydra/launcher=nope hydra/launcher=joblib hydra.launcher.n_jobs=1 hydra/sweeper=basic
hydra/sweeper=nope hydra/sweeper=cohort hydra.sweeper=1 hydra.sweeper.max_members=0 hydra.sweeper.max_members=1
hydra.sweeper.max_members=a hydra.sweeper.max_members=null hydra.sweeper.max_members=1.5 hydra.sweeper.foldable=[]
hydra.sweeper.foldable=null hydra.sweeper.foldable=[gamma] hydra.sweeper.foldable=gamma hydra.sweeper.foldable=[seed]
hydra.sweeper.foldable=[1] hydra.sweeper.params={seed:3} hydra.sweeper.params.seed=3 hydra.sweeper.params=1
hydra.sweeper.params={nope:1} hydra.sweeper.params=[1] +hydra.sweeper.params.gamma='0.5,0.7'
hydra.sweeper._target_=nope.X hydra.sweeper._target_=qohort.networks.vectors.MLP hydra.mode=RUN hydra.mode=MULTIRUN
hydra.mode=x hydra.searchpath=[nope] hydra.searchpath=[file:///nope] hydra.searchpath=1 hydra.searchpath=[pkg://nope]
hydra.callbacks.x.y=1 +hydra.callbacks.x._target_=nope.X hydra.nope=1 +hydra.nope=1 hydra=1 hydra.runtime.cwd=x
hydra.job_logging=null hydra/job_logging=nope hydra/job_logging=none hydra/job_logging=default
hydra/hydra_logging=default hydra/help=nope hydra/output=default hydra.help.template=x ~hydra ~hydra.run
~hydra/sweeper hydra.overrides.task=[x] hydra.job.config.override_dirname.kv_sep=:
""")

OPTIONS = _words("""
-m --multirun --cfg=job --cfg=hydra --cfg=all --cfg=nope --cfg --help --hydra-help --info --info=all --info=nope
--info=defaults --info=config --resolve --package=env --package=nope -h -x --nope --run --config-name=evaluate
--config-name=nope --config-name=train.yaml --config-path=nope --config-path=/nope --config-dir=nope
--config-dir=/dev/null --version --experimental-rerun=nope --shell-completion -c=job -p=env -- - --m
""")

LETTERS = "abcxyzABC0159_.-+~=:,;/\\@#$%^&*!?()[]{}<>|'\"` \t\né"


@dataclass
class Case:
    """What is run.

    Attributes:
        arguments: The command line behind the script's name.
        files: Files in the working directory, by relative path.
        conf: Whether the working directory has a copy of conf/, as `conf`, before `files` are written.
    """

    arguments: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    conf: bool = False


def _flat(tree: Any, prefix: str) -> dict[str, Any]:
    leaves = {}
    for key, value in tree.items():
        leaves[f"{prefix}{key}"] = value
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{key}.")
    return leaves


@cache
def groups() -> dict[str, list[str]]:
    """The choices of each group."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONF.glob("*/**/*.yaml")):
        group, *names = path.relative_to(CONF).with_suffix("").parts
        if group != "hydra":
            found.setdefault(group, []).append("/".join(names))
    return found


@cache
def keys() -> dict[str, Any]:
    """Every key of the primary configuration and of every choice of a group, and its value."""
    primary = yaml.safe_load((CONF / "train.yaml").read_text())
    leaves = _flat({key: value for key, value in primary.items() if key not in ("defaults", "hydra")}, "")
    for group, choices in groups().items():
        for choice in choices if group not in ("experiment", "agent") else ():
            tree = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text()) or {}
            leaves |= _flat({key: value for key, value in tree.items() if key != "defaults"}, f"{group}.")
    return leaves


def misspelt(draw: random.Random, word: str) -> str:
    """A word with a letter or two taken away, added, changed or swapped."""
    for _ in range(draw.choice((1, 1, 2))):
        at = draw.randrange(len(word) + 1)
        how = draw.randrange(4)
        if how == 0:
            word = word[:at] + word[at + 1 :]
        elif how == 1:
            word = word[:at] + draw.choice(LETTERS) + word[at:]
        elif how == 2:
            word = word[:at] + draw.choice(LETTERS) + word[at + 1 :]
        else:
            word = word[: at - 1] + word[at : at + 1] + word[at - 1 : at] + word[at + 1 :] if at else word[::-1]
    return word


ENDLESS = ("budget", "gradient_steps", "evaluation.episodes", "evaluation.max_episode_steps")
"""Keys that may be as large as one likes, and then it takes as long."""


def setting(draw: random.Random) -> str:
    """A key with an odd value."""
    key, value = draw.choice(list(keys().items()))
    if key.endswith("_target_"):
        return f"{key}={draw.choice(TARGETS)}"
    if key == "env.id":
        return f"{key}={draw.choice(ENVIRONMENTS)}"
    if isinstance(value, int | float) and key not in ENDLESS and draw.random() < 0.3:
        return f"{key}={value * draw.choice((-1, 0, 0.1, 0.5, 2, 3))}"
    odd = draw.choice(VALUES)
    return f"{key}={'abc' if key in ENDLESS and odd.lstrip('[')[:1].isdigit() and len(odd) > 3 else odd}"


def target(draw: random.Random) -> str:
    """A component of another kind."""
    return f"{draw.choice([key for key in keys() if key.endswith('_target_')])}={draw.choice(TARGETS)}"


def wrapper(draw: random.Random) -> str:
    """A wrapper around the environment."""
    extra = draw.choice(("", "", ",max_episode_steps:5", ",max_episode_steps:-1", ",min_reward:-1", ",a:1", ",env:1"))
    node = f"{{_target_:{draw.choice(TARGETS)}{extra}}}"
    return f"env.wrappers={draw.choice((f'[{node}]', f'[{node},{node}]', node, '[1]', '[{}]', '[null]'))}"


def argument_of_environment(draw: random.Random) -> str:
    """An argument of gymnasium.make."""
    key = draw.choice(("max_episode_steps", "render_mode", "is_slippery", "map_name", "desc", "foo", "id", "1"))
    return f"{draw.choice(('', '+', '++'))}env.kwargs.{key}={draw.choice(VALUES)}"


def choice(draw: random.Random) -> str:
    """A choice of a group, perhaps one that does not fit the others."""
    group, choices = draw.choice(list(groups().items()))
    name = draw.choice(choices)
    how = draw.randrange(10)
    if group == "experiment":  # those train for long
        return f"experiment={misspelt(draw, name)}"
    if how < 6:
        return f"{group}={name}"
    if how == 6:
        return f"{group}={misspelt(draw, name)}"
    if how == 7:
        return f"{misspelt(draw, group)}={name}"
    if how == 8:
        return f"{group}=[{name},{draw.choice(choices)}]"
    return f"{draw.choice('+~')}{group}={name}"


def prefixed(draw: random.Random) -> str:
    """A key added or taken away."""
    key, value = draw.choice(list(keys().items()))
    how = draw.randrange(4)
    if how == 0:
        return f"~{key}"
    if how == 1:
        return f"~{key}={value}"
    key = key if draw.random() < 0.5 else misspelt(draw, key)
    return f"{'+' * draw.choice((1, 1, 2, 3))}{key}={draw.choice(VALUES)}"


def misspelt_key(draw: random.Random) -> str:
    """A key that is not there."""
    key, value = draw.choice(list(keys().items()))
    return f"{misspelt(draw, key)}={value}"


def sweep(draw: random.Random) -> str:
    """A setting with several values."""
    if draw.random() < 0.3:
        group, choices = draw.choice(list(groups().items()))
        if group != "experiment":
            return f"{group}={','.join(draw.sample(choices, min(2, len(choices))))}"
    if draw.random() < 0.3:
        values = ("0,1", "range(0,3)", "1,1", "0,a", "[0,1],[2]", "[0,1],2", "choice(1,2)", "1,null")
        return f"seed={draw.choice(values)}"
    return setting(draw) + "," + draw.choice(VALUES)


def hydras_own(draw: random.Random) -> str:
    """A setting of Hydra's."""
    return draw.choice(HYDRA)


def option(draw: random.Random) -> str:
    """An option."""
    return draw.choice(OPTIONS)


def noise(draw: random.Random) -> str:
    """Anything."""
    return "".join(draw.choice(LETTERS) for _ in range(draw.randrange(6)))


def members(draw: random.Random) -> str:
    """A seed or a fold."""
    return draw.choice(
        (
            "fold=[{gamma:0.5},{gamma:0.6}]",
            "fold=[{gamma:0.5}]",
            "fold=[{gamma:2},{gamma:0.6}]",
            "fold=[{},{}]",
            "fold=[{budget:10},{}]",
            "fold=[{optimizer.lr:0.1},{optimizer.lr:0}]",
            "fold=[{optimizer.lr:0.1},{}]",
            "fold=[{max_grad_norm:1},{}]",
            "fold={gamma:0.5}",
            "fold=[]",
            "fold=[[1],[2]]",
            "fold=[{gamma:nan},{gamma:inf}]",
            "seed=[0,0]",
            "seed=[0,1,2]",
            "seed=[]",
            "seed=0",
            "seed=[[0,1]]",
            "seed=[9223372036854775807]",
            "seed=[9223372036854775808,1]",
            "seed=[true,false]",
        )
    )


def scratched(draw: random.Random) -> str:
    """A good setting with letters changed anywhere."""
    key, value = draw.choice(list(keys().items()))
    return misspelt(draw, f"{key}={value}".replace(" ", "").replace("None", "null"))


SETTINGS = (
    [setting] * 8
    + [choice] * 3
    + [prefixed] * 3
    + [misspelt_key] * 3
    + [scratched] * 2
    + [target, target, wrapper, argument_of_environment, members, hydras_own, hydras_own, option, noise]
)


def mutated_command_line(draw: random.Random) -> Case:
    """The short run with one to three settings too many."""
    arguments = list(BASE)
    if draw.random() < 0.2:
        arguments = ["-m", *arguments, *(sweep(draw) for _ in range(draw.choice((1, 1, 2))))]
    else:
        arguments += [draw.choice(SETTINGS)(draw)]
    arguments += [draw.choice(SETTINGS)(draw) for _ in range(draw.choice((0, 0, 0, 1, 2)))]
    return Case(arguments)


BROKEN = [
    *(
        b"",
        b"\n",
        b"[]",
        b"a",
        b"1",
        b"null",
        b"a: [",
        b"a: b: c",
        b"\t a: 1",
        b"- a",
        b"{",
        b"\xff\xfe",
        b"\x00",
        b"%",
    ),
    *(b"a: 1\na: 2\n", b"a: !nope 1\n", b"a: !!python/object:os.X {}\n", b"a: *b\n", b"a: &x [*x]\n", b"a: ${\n"),
    *(
        b"? [a]\n: b\n",
        b"? {a: 1}\n: b\n",
        b"1: 2\n",
        b"true: 1\nnull: 2\n",
        b"a: 2020-01-01\n",
        b"# @package nope\na: 1\n",
    ),
    *(b"defaults: 1\n", b"defaults: [nope]\n", b"defaults: [1]\n", b"defaults:\n  - {a: b, c: d}\n"),
    *(b"defaults:\n  - nope: x\n", b"defaults:\n  - override /env: nope\n", b"defaults:\n  - _self_\n  - _self_\n"),
]
"""What a file may turn into."""


def mutated_text(draw: random.Random, text: str) -> bytes:
    """A configuration with a line taken away, doubled, moved or changed, or cut short, or another one."""
    lines = text.splitlines(keepends=True)
    at = draw.randrange(len(lines)) if lines else 0
    how = draw.randrange(8)
    if how == 0 or not lines:
        return draw.choice(BROKEN)
    if how == 1:
        del lines[at]
    elif how == 2:
        lines.insert(at, lines[at])
    elif how == 3:
        lines[at] = draw.choice((" ", "  ", "\t", "- ")) + lines[at]
    elif how == 4:
        return text[: draw.randrange(len(text))].encode()
    elif how == 5:
        lines[at] = misspelt(draw, lines[at])
    elif how == 6:
        lines.insert(at, draw.choice(BROKEN).decode("latin-1") + "\n")
    else:
        key, _, _ = lines[at].partition(":")
        lines[at] = f"{key}: {draw.choice(VALUES)}\n"
    return "".join(lines).encode()


def mutated_conf(draw: random.Random) -> Case:
    """A copy of conf/ with a mistake in a file that is used."""
    used = [f"{group}/{name}.yaml" for group, names in groups().items() for name in names if group != "experiment"]
    file = draw.choice(["train.yaml", "train.yaml", "train.yaml", *used])
    group, _, name = file.removesuffix(".yaml").rpartition("/")
    chosen = [f"{group}={name}"] if group else []
    files = {f"conf/{file}": mutated_text(draw, (CONF / file).read_text())}
    return Case(["--config-path={cwd}/conf", *BASE, *chosen], files, conf=True)


def mutated_addition(draw: random.Random) -> Case:
    """A group's choice of one's own, with a mistake in it, in a directory of one's own."""
    group, names = draw.choice(list(groups().items()))
    name = draw.choice(names)
    text = (CONF / group / f"{name}.yaml").read_text()
    multirun = ["-m"] if draw.random() < 0.3 else []
    how = draw.randrange(3)
    if how == 0 or group == "experiment":
        lines = [f"{key}: {draw.choice(VALUES)}\n" for key in draw.sample(list(keys()), 2)]
        group, text = "experiment", "# @package _global_\n" + "".join(lines)
    elif how == 1:
        text = mutated_text(draw, text).decode("latin-1")
    else:
        text = draw.choice(BROKEN).decode("latin-1")
    files = {f"mine/{group}/own.yaml": text.encode()}
    return Case([*multirun, "--config-dir=mine", *BASE, f"{group}=own"], files)


def case(number: int) -> Case:
    """The case of a number."""
    draw = random.Random(number)
    make = draw.choice([mutated_command_line] * 8 + [mutated_conf, mutated_addition])
    return make(draw)
