"""The plan of a dry run: which runs a command would train, resume or skip, and where. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from qohort.config.errors import ConfigError
from qohort.environments.actions import actions_of
from qohort.environments.making import make_environment
from qohort.runs.checkpoints import KEPT
from qohort.runs.listing import in_words, size, state_of
from qohort.runs.members import Member, other_code
from qohort.runs.preparing import prepare
from qohort.runs.room import replay_bytes


def plan(config: DictConfig) -> None:
    """Check a configuration as training would, and print the plan.

    Args:
        config: The composed configuration, `conf/train.yaml`.

    Raises:
        ConfigError: If the configuration is invalid.
    """
    print_plan([prepare(config, resumes=False)])


def print_plan(cohorts: Sequence[Sequence[Member]]) -> None:
    """Print the cohorts that would be trained, with the directories and the state of their runs.

    Args:
        cohorts: The members of each cohort.
    """
    members = [member for cohort in cohorts for member in cohort]
    steps = sum(member.config.budget for member in members)
    print(f"plan: {_count(len(cohorts), 'cohort')}, {_count(len(members), 'run')}, {steps:,} env_steps in all")
    for number, cohort in enumerate(cohorts):
        first = cohort[0].config
        print(
            f"{number}: {first.agent} on {first.env.name}, {_count(len(cohort), 'run')} of {first.budget:,} env_steps"
        )
        for line in _lines(cohort):
            print(f"   {line}")
    print("nothing was trained or written (--dry-run)")


def _lines(cohort: Sequence[Member]) -> Iterator[str]:
    """Yield a line for each directory and state of a cohort's runs, and one for the size of its replay."""
    alike: dict[tuple[Path, str], list[int]] = {}
    trained = []
    for member in cohort:
        words, trains = outlook(member)
        alike.setdefault((member.directory.path.parent, words), []).append(member.config.seed)
        trained += [member.config] if trains else []
    for (parent, words), seeds in alike.items():
        name = f"seed-{seeds[0]}" if len(seeds) == 1 else f"seed-{{{in_words(seeds).replace(', ', ',')}}}"
        yield f"{parent / name}: {words}"
    if trained:
        env = make_environment(trained[0].env)
        whole = replay_bytes(trained, env.observation_space, actions_of(env.action_space))
        env.close()
        saved = (KEPT + 1) * whole if trained[0].checkpoint.replay else 0
        yield f"replay: {size(whole)} of memory; checkpoints: up to {size(saved)} more than the networks"


def outlook(member: Member) -> tuple[str, bool]:
    """Return what training would do with a run, in words, and whether it would train it."""
    config = member.config
    try:
        state, detail, _ = state_of(member.directory)
    except ConfigError as error:
        state, detail = "damaged", str(error)
    if not (member.directory.path / "config.yaml").exists():
        return "new", True
    made = other_code(member)
    code = "" if made is None else f", made with other code ({made})"
    if state == "running":
        return f"running {detail}: skipped", False
    if config.overwrite:
        return f"{state}{code}: starts over (overwrite=true)", True
    if state == "finished":
        return f"finished{code}: skipped", False
    if state == "failed":
        again = config.retry_failed
        return f"failed {detail}: {'starts over' if again else 'skipped (retry_failed=true starts it over)'}", again
    if state == "damaged":
        return f"damaged: {detail}", False
    step = member.directory.resumable_step()
    if step is None:
        return "interrupted before its first checkpoint: starts over", True
    if made is not None and config.other_code == "refuse":
        return f"interrupted at {step:,} env_steps{code}: refused unless other_code=allow", False
    return f"interrupted at {step:,} env_steps{code}: resumed there", True


def _count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
