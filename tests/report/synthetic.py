"""Synthetic runs: directories as training leaves them, with scores of our choosing and no training."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from qohort.config.composition import CONFIG_DIRECTORY
from qohort.experiments.ablation import read_ablation
from qohort.report.planning import plan_runs
from qohort.report.scores import PlannedRun
from qohort.runs.directory import area_under_curve
from qohort.runs.manifest import cpu_name

OUTPUT = Path("planned")
MANIFEST = {
    "command": ["train.py", "-m", "ablation=synthetic"],
    "git_commit": "0" * 40,
    "git_dirty": False,
    "python": "3.11.7",
    "packages": {"qohort": "0.1.0", "torch": "2.13.0"},
    "cpu": cpu_name(),
    "threads": 1,
    "compile": "none",
}


def manifest(
    arms: Sequence[str], environments: dict[str, tuple[float, float]], seeds: int, budget: int = 20_000
) -> str:
    """A manifest of arms that differ in their discount factor; the first one is the baseline."""
    lines = ["# @package ablation", "title: A synthetic ablation", f"baseline: {arms[0]}"]
    lines += [f"seeds: range(0,{seeds})", f"budget: {budget}", "settings: [evaluation.every=1000, compile=none]"]
    lines += [
        "environments:",
        *(f"  {name}: {{low: {low}, high: {high}}}" for name, (low, high) in environments.items()),
    ]
    lines += ["arms:", *(f"  {arm}: [gamma={0.9 + 0.001 * index:.3f}]" for index, arm in enumerate(arms))]
    return "\n".join(lines) + "\n"


@contextmanager
def loader():
    """Composes configurations, as in a script."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def write_manifest(directory: Path, text: str, name: str = "synthetic") -> Path:
    """A directory of configurations (for --config-dir) with a manifest in it."""
    file = directory / "conf" / "ablation" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return directory / "conf"


def plan(conf: Path, output: Path, name: str = "synthetic", extra: Sequence[str] = ()) -> list[PlannedRun]:
    """The runs that a manifest asks for."""
    text = (conf / "ablation" / f"{name}.yaml").read_text()
    return [
        replace(
            run,
            config=replace(run.config, output_dir=str(output)),
            directory=output / run.directory.relative_to(OUTPUT),
        )
        for run in _planned(text, str(conf), name, tuple(extra))
    ]


_PLANS: dict[tuple[str, str, tuple[str, ...]], list[PlannedRun]] = {}


def _planned(text: str, conf: str, name: str, extra: tuple[str, ...]) -> list[PlannedRun]:
    """The same below `OUTPUT`, composed once for each text, since that takes seconds."""
    if (text, name, extra) not in _PLANS:
        with loader() as composes:
            ablation = read_ablation(name, extra, composes, [f"hydra.searchpath=[file://{conf}]"])
            _PLANS[text, name, extra] = plan_runs(ablation, composes, str(OUTPUT))
    return _PLANS[text, name, extra]


Score = Callable[[PlannedRun, np.random.Generator], float]


def write_run(run: PlannedRun, score: float, generator: np.random.Generator, episodes: int = 100) -> None:
    """A finished run that ends with a score, after a noisy rise to it and rows of training episodes."""
    config = run.config
    steps = np.arange(config.evaluation.every, config.budget + 1, config.evaluation.every)
    choice = 0.0 if score > 0 else -500.0
    returns = choice + (score - choice) * (1 - np.exp(-4 * steps / config.budget)) / (1 - np.exp(-4))
    returns = returns + np.append(generator.normal(0, 0.02 * abs(score) + 1e-9, size=len(steps) - 1), 0.0)
    rows = [
        {
            "env_steps": int(step),
            "gradient_steps": 1,
            "episodes": 1,
            "wall_s": 1.0,
            "train/return": 1.0,
            "train/length": 1,
        }
        for step in np.linspace(1, config.budget, episodes, dtype=int)
    ]
    rows += [
        {"env_steps": int(x), "gradient_steps": 1, "episodes": 1, "wall_s": 1.0, "eval/return": float(y)}
        for x, y in zip(steps, returns, strict=True)
    ]
    rows.sort(key=lambda row: row["env_steps"])
    run.directory.mkdir(parents=True)
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run.directory / "manifest.json").write_text(json.dumps(MANIFEST, indent=2))
    curve = list(zip(steps.tolist(), returns.tolist(), strict=True))
    result = {
        "seed": config.seed,
        "budget": config.budget,
        "env_steps": config.budget,
        "gradient_steps": 1,
        "episodes": 1,
        "final_return": curve[-1][1],
        "best_return": float(returns.max()),
        "auc": area_under_curve(curve),
        "wall_s": 60.0,
        "fingerprint": f"{config.seed:064x}",
    }
    (run.directory / "result.json").write_text(json.dumps(result, indent=2))


def write_runs(planned: Sequence[PlannedRun], score: Score, seed: int = 0) -> None:
    """Every run of a plan."""
    for number, run in enumerate(planned):
        generator = np.random.default_rng((seed, number))
        write_run(run, score(run, generator), generator)


ENVIRONMENTS = {"cartpole": (0, 500), "acrobot": (-500, -70), "mountaincar": (-200, -100), "lunarlander": (-200, 200)}


def plausible(run: PlannedRun, generator: np.random.Generator) -> float:
    """Scores that differ by arm, with a ceiling, as real ones have."""
    low, high = ENVIRONMENTS[run.environment]
    arm = int(run.config.gamma * 1000 - 900 + 0.5)
    share = min(1.0, generator.normal(0.55 + 0.05 * arm, 0.15))
    return low + share * (high - low)


def plausible_by_arm(run: PlannedRun, generator: np.random.Generator) -> float:
    """The same for any arms: each run a score of its own."""
    low, high = ENVIRONMENTS[run.environment]
    return low + generator.uniform(0.3, 0.9) * (high - low)


def main(target: str) -> None:
    """Write 1,200 runs, 10 arms × 4 environments × 30 seeds: python tests/report/synthetic.py <directory>."""
    directory = Path(target)
    conf = write_manifest(directory, manifest([f"arm_{n}" for n in range(10)], ENVIRONMENTS, 30))
    write_runs(plan(conf, directory / "outputs"), plausible)


if __name__ == "__main__":
    main(sys.argv[1])
