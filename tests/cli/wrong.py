"""What a wrong input is, and the project that it is typed in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SHORT = (
    *("seed=[0,1]", "budget=40", "batch_size=4", "train_every=4", "learning_starts=8", "log_every=10"),
    *("evaluation.every=20", "evaluation.episodes=1", "evaluation.max_episode_steps=10", "network.hidden=[8]"),
    *("compile=none", "logger=none", "trainer.progress_bar=false"),
)
"""A run that takes a moment, should a line be right."""

MANIFEST = """# @package ablation
title: Own
baseline: dqn
seeds: range(0,2)
budget: 40
environments:
  cartpole: {low: 0, high: 500}
settings:
  - batch_size=4
  - train_every=4
  - learning_starts=8
  - log_every=10
  - evaluation.every=20
  - evaluation.episodes=1
  - evaluation.max_episode_steps=10
  - network.hidden=[8]
  - compile=none
  - logger=none
  - trainer.progress_bar=false
arms:
  dqn:
    overrides: [agent=dqn]
  double:
    overrides: [bootstrap=double]
"""

STUDY = """# @package _global_
name: found
train:
  batch_size: 4
  learning_starts: 8
  compile: none
  logger: none
  evaluation.every: 20
  evaluation.episodes: 1
  evaluation.max_episode_steps: 10
space:
  optimizer.lr: {low: 1e-4, high: 1e-2, log: true}
  gamma: {choices: [0.98, 0.99]}
trials: 2
parallel: 2
rungs: [40]
tuning_seeds: [1000]
reporting_seeds: [0]
"""

PUBLISHED = """name,environment,mean,std,n,env_steps,source
Paper,CartPole-v1,488.7,16.1,3,500000,a page
"""

MAKES = ("new lab", "train -m ablation=own", "report ablation=own")
"""The commands that make the project; the files of `FILES` are written after the first one."""
FILES = {
    "conf/ablation/own.yaml": MANIFEST,
    "conf/study/own.yaml": STUDY,
    "published.csv": PUBLISHED,
    "a file": "text\n",
}
DIRECTORY = object()
"""In the files of a wrong input: a directory is in this place."""
LINK = object()
"""In the files of a wrong input: a link to nowhere is in this place."""


@dataclass(frozen=True)
class Wrong:
    """A wrong input.

    Attributes:
        kind: What kind of mistake it is.
        line: The command line behind `qohort`; `{run}` and other names stand for the project's paths.
        told: Words that the message must have.
        files: The files that are changed, by path: another content, None for none, `DIRECTORY` or `LINK`.
        may_be_right: Whether it was made by a machine, so that it may happen to be right; then it does not count.
        looks: Whether an environment must be made to find the mistake.
        lists: Whether lines that list runs are before the message.
        user: Whether the command is run by a user who may not write to the project.
    """

    kind: str
    line: tuple[str, ...]
    told: tuple[str, ...] = ()
    files: Mapping[str, object] = field(default_factory=dict)
    may_be_right: bool = False
    looks: bool = False
    lists: bool = False
    user: bool = False

    @property
    def name(self) -> str:
        """Its name in reports."""
        changed = "".join(f" [{path}: {_brief(content)}]" for path, content in self.files.items())
        return f"{self.kind}: qohort {' '.join(self.line)}{changed}"


def _brief(content: object) -> str:
    if content is None or content is DIRECTORY or content is LINK:
        return "missing" if content is None else "a directory" if content is DIRECTORY else "a link to nowhere"
    if callable(content):
        return str(content.__name__)
    text = content.decode("latin-1") if isinstance(content, bytes) else str(content)
    return repr(text if len(text) <= 60 else f"{text[:28]}...{text[-28:]}")


def paths(project: Path) -> dict[str, str]:
    """The names that lines may use, and the paths in the project that they stand for."""
    experiments = sorted(project.glob("outputs/*/*-????????"))
    first = next(one for one in experiments if one.name.startswith("dqn-"))
    second = next(one for one in experiments if one.name.startswith("double-"))
    found = {"experiment": first, "run": first / "seed-0", "twin": first / "seed-1", "other": second / "seed-0"}
    return {name: str(path.relative_to(project)) for name, path in found.items()}


def filled(text: str, names: Mapping[str, str]) -> str:
    """A text with the project's paths in place of their names."""
    for name, path in names.items():
        text = text.replace(f"{{{name}}}", path)
    return text


def change(project: Path, files: Mapping[str, object], names: Mapping[str, str]) -> None:
    """Change files of the project."""
    for name, content in files.items():
        path = project / filled(name, names)
        if callable(content):
            content = content(path.read_bytes())
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if content is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is DIRECTORY:
            path.mkdir()
        elif content is LINK:
            path.symlink_to("nowhere")
        else:
            path.write_bytes(content if isinstance(content, bytes) else str(content).encode())


def swap(*pairs: tuple[str, str]) -> Callable[[bytes], bytes]:
    """A change of a file: texts that are replaced."""

    def change(content: bytes) -> bytes:
        text = content.decode()
        for old, new in pairs:
            assert old in text, old
            text = text.replace(old, new)
        return text.encode()

    change.__name__ = "; ".join(f"{old.strip()[:60]} -> {new.strip()[-110:]}" for old, new in pairs)
    return change
