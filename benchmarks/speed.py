"""Speed of the whole product beside Stable-Baselines3 and JAX: the same work, one core each, in turns.

A speed is taken over a window of env_steps that begins after the first updates, so that imports and
compilation are outside; what they take is reported beside it as start-up. JAX is a plain program with no logging and
no evaluation (`jax_dqn.py`). A sweep's time is that of everything, from
the command to its end, on all cores.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata, util
from pathlib import Path
from typing import Annotated, Any, Literal

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from qohort.cli.entry_point import entry_point
from qohort.config.annotations import PositiveInt, Range, Sized
from qohort.config.checks import build_config
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError
from qohort.config.members import check_config
from qohort.config.paths import check_directory
from qohort.config.schema import TrainConfig
from qohort.runs.manifest import cpu_name

BENCHMARKS = Path(__file__).parent
SCRIPTS = BENCHMARKS.parent / "scripts"


@dataclass(frozen=True)
class Geometry:
    """One piece of work.

    Attributes:
        experiment: Our settings.
        budget: env_steps of a member.
        start: The env_steps at which the window begins.
        beside: Whether Stable-Baselines3's DQN and the program in JAX do the same work.
        settings: Further settings.
    """

    experiment: str
    budget: int
    start: int
    beside: bool = True
    settings: tuple[str, ...] = ()


GEOMETRIES = {
    "cleanrl": Geometry("cleanrl/cartpole", budget=60_000, start=15_000),
    "article": Geometry("article/dqn", budget=20_000, start=2_000),
    "rainbow": Geometry("cartpole_50k/rainbow", budget=8_000, start=2_000, beside=False),
    "minatar": Geometry("minatar/dqn", budget=12_000, start=6_000, beside=False),
    "minatar_every_4": Geometry("minatar/dqn", budget=12_000, start=6_000, beside=False, settings=("train_every=4",)),
}


def geometry_config(geometry: Geometry) -> TrainConfig:
    """Our settings for a geometry, the first member's."""
    overrides = [f"experiment={geometry.experiment}", f"budget={geometry.budget}"]
    with hydra.initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return check_config(hydra.compose("train", overrides))[0]


SB3_CAN = {
    "network": "qohort.networks.vectors.MLP",
    "replay": "qohort.replay.ring.UniformReplay",
    "optimizer": "qohort.agent.optimizers.MemberAdam",
    "lr_schedule": "qohort.cohort.schedules.ConstantSchedule",
    "exploration": "qohort.agent.exploration.EpsilonGreedy",
}
"""The components that Stable-Baselines3's DQN has."""


def sb3_arguments(config: TrainConfig) -> dict[str, Any]:
    """The same settings as keyword arguments of Stable-Baselines3's DQN.

    Deviations: 1. its loss is Huber's; 2. no target network is one that is copied at every step; 3. an ε that
    falls by a factor falls in a straight line, to the same end in as many steps.

    Raises:
        ConfigError: If it cannot do the same.
    """
    for name, target in SB3_CAN.items():
        if (own := getattr(config, name)["_target_"]) != target:
            raise ConfigError(f"{name}._target_={own} is not supported: Stable-Baselines3's DQN has {target} only")
    epsilon, optimizer = config.exploration["epsilon"], config.optimizer
    return {
        "policy_kwargs": {
            "net_arch": list(config.network["hidden"]),
            "optimizer_kwargs": {"betas": tuple(optimizer["betas"]), "eps": optimizer["eps"]},
        },
        "learning_rate": optimizer["lr"] * config.lr_schedule["value"],
        "buffer_size": config.replay["capacity"],
        "batch_size": config.batch_size,
        "gamma": config.gamma,
        "learning_starts": config.learning_starts,
        "train_freq": config.train_every,
        "gradient_steps": config.gradient_steps,
        "max_grad_norm": config.max_grad_norm or math.inf,
        "target_update_interval": config.target_network.get("every", 1),
        "exploration_fraction": _fall(epsilon, config),
        "exploration_initial_eps": epsilon["start"],
        "exploration_final_eps": epsilon["end"],
    }


def _fall(epsilon: Mapping[str, Any], config: TrainConfig) -> float:
    """The part of the budget in which ε comes to its end."""
    if epsilon.get("fraction") is not None:
        return float(epsilon["fraction"])
    if "decay" not in epsilon or epsilon["per"] != "gradient_steps":
        raise ConfigError("exploration.epsilon is not supported: give fraction, or decay with per=gradient_steps")
    updates = math.ceil(math.log(epsilon["end"] / epsilon["start"]) / math.log(epsilon["decay"]))
    return updates * config.train_every / config.gradient_steps / config.budget


@dataclass(frozen=True)
class BenchmarkConfig:
    """The configuration of the benchmark; `conf/benchmark.yaml` says what each key is."""

    geometries: Sequence[Literal["cleanrl", "article", "rainbow", "minatar", "minatar_every_4"]]
    cohorts: Annotated[Sequence[PositiveInt], Sized(1)]
    sweep: Annotated[int, Range(0)]
    replay_members: Annotated[int, Range(0)]
    repeats: PositiveInt
    core: Annotated[int, Range(0)]
    compile: Literal["inductor", "fx", "none"]
    backend: Literal["auto", "tensor", "gymnasium"]
    bits: Literal["portable", "native"]
    jax: str | None
    budget_factor: PositiveInt
    output: str


@dataclass(frozen=True)
class Timing:
    """One run: env_steps a second summed over its members, and the seconds outside the window."""

    speed: float
    startup_s: float


@entry_point("benchmark")
def main(config: DictConfig) -> None:
    """Run every system in turn, print the table and write the figures.

    Raises:
        ConfigError: If the configuration is wrong, or Stable-Baselines3 is not installed.
    """
    settings: BenchmarkConfig = build_config(BenchmarkConfig, config)
    if settings.core not in os.sched_getaffinity(0):
        raise ConfigError(f"core={settings.core} is not one of this process's: {sorted(os.sched_getaffinity(0))}")
    if settings.jax is not None and not Path(settings.jax).is_file():
        raise ConfigError(f"jax={settings.jax}: no such file; make benchmark makes it, and jax=null leaves JAX out")
    check_directory("output", str(Path(settings.output).absolute().parent))
    if Path(settings.output).is_dir():
        raise ConfigError(f"output={settings.output} is a directory: name a file")
    if util.find_spec("stable_baselines3") is None:
        raise ConfigError("stable-baselines3 is not installed: make benchmark installs it")
    results = {name: measure(name, settings) for name in settings.geometries}
    sweep = measure_sweep(settings) if settings.sweep else None
    replay = measure_replay(settings) if settings.replay_members else None
    figures = {
        "cpu": cpu_name(),
        "compile": settings.compile,
        "bits": settings.bits,
        "budget_factor": settings.budget_factor,
        "stable_baselines3": metadata.version("stable-baselines3"),
        "torch": metadata.version("torch"),
        "results": results,
        "sweep": sweep,
        "replay": replay,
    }
    Path(settings.output).write_text(json.dumps(figures, indent=2) + "\n")
    show(figures)
    print(f"figures: {settings.output}")


def measure(name: str, settings: BenchmarkConfig) -> dict[str, Any]:
    """The timings of one geometry: the systems take turns, in the opposite order each other round."""
    sizes = {f"Qohort, {_members(members)}": ("Qohort", members) for members in settings.cohorts}
    if GEOMETRIES[name].beside:
        jax = {f"JAX, {_members(members)}": ("JAX", members) for members in settings.cohorts if settings.jax}
        sizes = {"Stable-Baselines3": ("Stable-Baselines3", 1), **jax, **sizes}
    systems = list(sizes)
    timings: dict[str, list[Timing]] = {system: [] for system in systems}
    for repeat in range(settings.repeats):
        for system in systems if repeat % 2 == 0 else reversed(systems):
            print(f"{name}, round {repeat + 1} of {settings.repeats}: {system} ...", file=sys.stderr, flush=True)
            timings[system].append(_run(name, *sizes[system], repeat, settings))
    rows: dict[str, dict[str, Any]] = {}
    base = statistics.median(timing.speed for timing in timings[systems[0]])
    for system, runs in timings.items():
        speed = statistics.median(timing.speed for timing in runs)
        rows[system] = {
            "env_steps_per_s": speed,
            "ratio": speed / base,
            "startup_s": statistics.median(timing.startup_s for timing in runs),
            "runs": [timing.speed for timing in runs],
        }
    for members in settings.cohorts:
        if peer := rows.get(f"JAX, {_members(members)}"):
            row = rows[f"Qohort, {_members(members)}"]
            row["of_jax"] = row["env_steps_per_s"] / peer["env_steps_per_s"]
    return rows


SWEEP_GAMMAS, SWEEP_SEEDS = (0.9, 0.95, 0.99), 30


def measure_sweep(settings: BenchmarkConfig) -> dict[str, float]:
    """Seconds of 30 seeds of each of 3 arms on all cores: one command of ours, and a process a run of theirs."""
    cores = sorted(os.sched_getaffinity(0))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS)}
    seconds = {}
    with tempfile.TemporaryDirectory() as directory:
        ours = [
            str(SCRIPTS / "train.py"),
            "-m",
            f"experiment={GEOMETRIES['article'].experiment}",
            f"gamma={','.join(map(str, SWEEP_GAMMAS))}",
            f"seed=range(0,{SWEEP_SEEDS})",
            f"budget={settings.sweep}",
            "log_every=500",
            f"compile={settings.compile}",
            f"env.backend={settings.backend}",
            f"bits={settings.bits}",
            f"output_dir={directory}",
            "hydra/launcher=joblib",
        ]
        print(f"sweep: Qohort on {len(cores)} cores ...", file=sys.stderr, flush=True)
        began = time.perf_counter()
        _check_run(ours, environment)
        seconds["Qohort"] = time.perf_counter() - began
        program = "from speed import train_sb3; train_sb3"
        jobs = [
            ["-c", f"{program}('article', {settings.sweep}, {seed}, {directory + '/theirs'!r}, gamma={gamma})"]
            for gamma in SWEEP_GAMMAS
            for seed in range(SWEEP_SEEDS)
        ]
        print(f"sweep: Stable-Baselines3 on {len(cores)} cores ...", file=sys.stderr, flush=True)
        began = time.perf_counter()
        with ThreadPoolExecutor(len(cores)) as pool:
            list(pool.map(lambda job: _check_run(job, environment), jobs))
        seconds["Stable-Baselines3"] = time.perf_counter() - began
    return seconds | {"ratio": seconds["Stable-Baselines3"] / seconds["Qohort"], "budget": settings.sweep}


REPLAY_CAPACITY, REPLAY_BATCH = 20_000, 128


def measure_replay(settings: BenchmarkConfig) -> dict[str, float]:
    """Microseconds of a batch of every member from full replays of CartPole's transitions, in turns, one thread.

    Those of prioritised replay are given without and with the feeding back of TD errors.
    """
    import numpy as np
    import torch
    from gymnasium import spaces

    from qohort.cohort.program import Compiler
    from qohort.cohort.schedules import LinearSchedule, Progress
    from qohort.replay.base import ReplaySpec
    from qohort.replay.prioritized import PrioritizedReplay
    from qohort.replay.ring import UniformReplay
    from qohort.replay.transition import Transition

    torch.set_num_threads(1)
    members, rng = settings.replay_members, np.random.default_rng(0)
    gamma, seeds = torch.full((members,), 0.99), list(range(members))
    space = spaces.Box(-1, 1, (4,), np.float32)
    sizes = (REPLAY_BATCH, 4)
    spec = ReplaySpec(space, 1, *sizes, gamma, seeds, REPLAY_CAPACITY, torch.device("cpu"), Compiler(settings.compile))
    uniform = UniformReplay(spec, REPLAY_CAPACITY)
    prioritized = PrioritizedReplay(spec, LinearSchedule(0.4, 1.0, 1.0, None, "env_steps"), REPLAY_CAPACITY)
    for _ in range(REPLAY_CAPACITY):
        observation = rng.standard_normal((members, 1, 4)).astype(np.float32)
        action, reward = rng.integers(2, size=(members, 1)), np.ones((members, 1))
        terminated, truncated = rng.random((members, 1)) < 0.02, np.zeros((members, 1), dtype=bool)
        for replay in (uniform, prioritized):
            replay.add(Transition(observation, action, reward, terminated, truncated, observation))
    progress = Progress(REPLAY_CAPACITY, np.zeros(members, dtype=np.int64), REPLAY_CAPACITY // 2)
    errors = [torch.from_numpy(rng.standard_normal((members, REPLAY_BATCH)).astype(np.float32)) for _ in range(50)]

    def sample_and_feed_back(error: torch.Tensor) -> None:
        prioritized.sample(progress)
        prioritized.update_priorities(error)

    ways = {
        "uniform": lambda _: uniform.sample(progress),
        "prioritized, without feeding back": lambda _: prioritized.sample(progress),
        "prioritized": sample_and_feed_back,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    print(f"replay: batches of {_members(members)} ...", file=sys.stderr, flush=True)
    for repeat in range(31):
        for way, call in ways.items():
            began = time.perf_counter()
            for error in errors:
                call(error)
            if repeat:  # the first time they are compiled
                seconds[way].append((time.perf_counter() - began) / len(errors))
    return {way: 1e6 * statistics.median(times) for way, times in seconds.items()}


def _check_run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command} failed:\n{done.stderr}")


def _members(members: int) -> str:
    return "alone" if members == 1 else f"cohort of {members}"


def _run(name: str, system: str, members: int, repeat: int, settings: BenchmarkConfig) -> Timing:
    """One process of a system on one core."""
    geometry = GEOMETRIES[name]
    geometry = replace(geometry, budget=geometry.budget * settings.budget_factor)
    program = sys.executable
    with tempfile.TemporaryDirectory() as directory:
        if system == "Qohort":
            seeds = [repeat * members + member for member in range(members)]
            command = [
                str(SCRIPTS / "train.py"),
                f"experiment={geometry.experiment}",
                f"seed={seeds}".replace(" ", ""),
                f"budget={geometry.budget}",
                *geometry.settings,
                "log_every=500",
                f"compile={settings.compile}",
                f"env.backend={settings.backend}",
                f"bits={settings.bits}",
                f"output_dir={directory}",
            ]
        elif system == "JAX":
            program = str(settings.jax)
            command = [
                *(str(BENCHMARKS / "jax_dqn.py"), "--geometry", name, "--members", str(members)),
                *("--env-steps", str(geometry.budget), "--start", str(geometry.start)),
            ]
        else:
            command = [
                "-c",
                f"from speed import run_sb3; run_sb3({name!r}, {geometry.budget}, {repeat}, {directory!r})",
            ]
        began = time.perf_counter()
        done = subprocess.run(
            [program, *command],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS)},
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {settings.core}),
        )
        whole = time.perf_counter() - began
        if done.returncode != 0:
            raise RuntimeError(f"{command} failed:\n{done.stderr}")
        steps = (geometry.budget - geometry.start) * members
        if system == "Qohort":
            seconds = _window(Path(directory), geometry)
        else:
            told = json.loads(done.stdout.splitlines()[-1])
            seconds = steps / told["env_steps_per_s"] if system == "JAX" else told
    return Timing(steps / seconds, whole - seconds)


def _window(directory: Path, geometry: Geometry) -> float:
    """Seconds from the window's start to the end of training, from the slowest member's own rows."""
    seconds: list[float] = []
    for file in directory.rglob("metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        start = next(row for row in rows if "train/loss" in row and row["env_steps"] >= geometry.start)
        share = (geometry.budget - geometry.start) / (geometry.budget - start["env_steps"])
        seconds.append((rows[-1]["wall_s"] - start["wall_s"]) * share)
    return max(seconds)


def train_sb3(name: str, budget: int, seed: int, directory: str, callback: Any = None, **arguments: Any) -> None:
    """Train with Stable-Baselines3, one thread, its CSV logger on.

    Args:
        name: The geometry.
        budget: env_steps.
        seed: The run's seed.
        directory: Where its log goes.
        callback: Called at every step, as Stable-Baselines3 does.
        arguments: Of its DQN, besides those of the geometry.
    """
    import torch
    from stable_baselines3 import DQN
    from stable_baselines3.common.logger import configure

    torch.set_num_threads(1)
    given = {**sb3_arguments(geometry_config(replace(GEOMETRIES[name], budget=budget))), **arguments}
    model = DQN("MlpPolicy", "CartPole-v1", seed=seed, device="cpu", **given)
    model.set_logger(configure(directory, ["csv"]))
    model.learn(budget, callback=callback)


def run_sb3(name: str, budget: int, seed: int, directory: str) -> None:
    """Train with Stable-Baselines3 and print the window's seconds."""
    geometry = GEOMETRIES[name]
    began = 0.0

    def start_the_clock(scope: dict[str, Any], _: dict[str, Any]) -> bool:
        nonlocal began
        if scope["self"].num_timesteps == geometry.start:
            began = time.perf_counter()
        return True

    train_sb3(name, budget, seed, directory, start_the_clock)
    print(time.perf_counter() - began)


def show(figures: dict[str, Any]) -> None:
    """Print a table a geometry, and a line for the sweep."""
    console = Console(width=None if sys.stdout.isatty() else 100)
    for name, rows in figures["results"].items():
        table = Table(
            title=f"{name} ({GEOMETRIES[name].experiment}), one core of {figures['cpu']}", title_justify="left"
        )
        for heading in ("system", "env_steps/s", "ratio", "of JAX", "start-up s"):
            table.add_column(heading, justify="left" if heading == "system" else "right")
        for system, row in rows.items():
            of_jax = f"{row['of_jax']:.2f}" if "of_jax" in row else ""
            speed, ratio = f"{row['env_steps_per_s']:,.0f}", f"{row['ratio']:.1f}"
            table.add_row(system, speed, ratio, of_jax, f"{row['startup_s']:.0f}")
        console.print(table)
    if replay := figures["replay"]:
        shown = ", ".join(f"{way} {us:.0f} µs ({us / replay['uniform']:.1f})" for way, us in replay.items())
        print(f"a batch of {REPLAY_BATCH} from a replay of {REPLAY_CAPACITY:,}: {shown}")
    if sweep := figures["sweep"]:
        print(
            f"sweep of {len(SWEEP_GAMMAS)} arms of {SWEEP_SEEDS} seeds, {sweep['budget']:,} env_steps each, "
            f"on all cores: Stable-Baselines3 {sweep['Stable-Baselines3']:.0f} s, Qohort {sweep['Qohort']:.0f} s, "
            f"{sweep['ratio']:.1f} times as fast"
        )


if __name__ == "__main__":
    main()
