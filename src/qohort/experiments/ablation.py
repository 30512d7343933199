"""Ablations: a manifest declares arms, environments, seeds and budget. The sweep and the report are made from it.

An arm is a label and a list of overrides, as on the command line. A manifest is turned into the overrides of ordinary
jobs, which `qohort.experiments.sweep.fold` groups into cohorts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qohort.config.annotations import PositiveInt
from qohort.config.checks import build_config
from qohort.config.errors import ConfigError
from qohort.config.identity import config_difference, experiment_tree, flat
from qohort.config.messages import format_value, nearest
from qohort.config.schema import TrainConfig
from qohort.experiments.presentation import FIGURES, Show, check_comparable
from qohort.experiments.stopping import SequentialConfig, is_stopping_key, with_stopping
from qohort.runs.metrics import RETURN, check_metric

GROUP = "ablation"


@dataclass(frozen=True)
class EnvironmentChoice:
    """An environment of an ablation, as declared in the manifest.

    Attributes:
        low: The return that is 0 in normalised scores.
        high: The return that is 1 in normalised scores.
        overrides: Overrides of every arm in this environment.
    """

    low: float
    high: float
    overrides: Sequence[str]


@dataclass(frozen=True)
class ArmChoice:
    """An arm, as declared in the manifest.

    Attributes:
        overrides: The overrides that define the arm.
        differs: Keys in which the arm differs from the arm it is compared with, besides those that `overrides` names.
            Needed for presets (`agent=rainbow`), which change keys without naming them.
        title: Name in tables and figures; null for the label.
    """

    overrides: Sequence[str]
    differs: Sequence[str]
    title: str | None


@dataclass(frozen=True)
class ManifestConfig:
    """A manifest, `conf/ablation/<name>.yaml`.

    Attributes:
        title: The title of the report.
        baseline: The label of the arm that the others are compared with.
        seeds: Hydra's `range(0,30)`, or a list.
        budget: env_steps of every run.
        settings: Overrides of every arm.
        environments: The environments, by their name in `conf/env`.
        arms: The arms, by label.
        add_one: Arms derived from another arm, by that arm and by name. Their overrides follow those of that arm, and
            their label is `<arm>_plus_<name>`.
        leave_one_out: The same with the label `<arm>_minus_<name>`.
        show: What the report shows.
        until: `seeds` to train every seed, `decided` to stop arms when they are told apart; None for `seeds` when
            training, and for what the runs were begun with when reporting.
        sequential: How arms are stopped with `until=decided`.
    """

    title: str
    baseline: str
    seeds: str | Sequence[int]
    budget: PositiveInt
    settings: Sequence[str]
    environments: Mapping[str, EnvironmentChoice]
    arms: Mapping[str, ArmChoice]
    add_one: Mapping[str, Mapping[str, ArmChoice]]
    leave_one_out: Mapping[str, Mapping[str, ArmChoice]]
    show: Show
    until: Literal["seeds", "decided"] | None
    sequential: SequentialConfig


@dataclass(frozen=True)
class Arm:
    """An arm of an ablation.

    Attributes:
        label: Name in directories and files.
        title: Name in tables and figures.
        overrides: The overrides that define the arm.
        against: The label of the arm it is compared with; its own label for the baseline.
        declared: Keys in which its configuration may differ from that of `against`.
    """

    label: str
    title: str
    overrides: tuple[str, ...]
    against: str
    declared: tuple[str, ...]


@dataclass(frozen=True)
class Ablation:
    """An ablation, read from its manifest.

    Attributes:
        name: Name of the manifest, as in `ablation=<name>`.
        manifest: The manifest.
        arms: All arms, in the order of the manifest.
        extra: Overrides from the command line, applied last.
    """

    name: str
    manifest: ManifestConfig
    arms: tuple[Arm, ...]
    extra: tuple[str, ...]

    @property
    def selector(self) -> str:
        """The override that selects it on the command line of a report."""
        return f"{GROUP}={self.name}"

    @property
    def sweep(self) -> str:
        """The override that trains it."""
        return self.selector


class ArmInEnvironment(NamedTuple):
    """One arm in one environment, with the overrides of its runs."""

    arm: Arm
    environment: str
    overrides: list[str]


def read_ablation(name: str, extra: Sequence[str], loader: ConfigLoader, search: Sequence[str] = ()) -> Ablation:
    """Read and check a manifest.

    Args:
        name: A file in `conf/ablation`, without its suffix.
        extra: Overrides from the command line.
        loader: Hydra's configuration loader.
        search: The override that adds a directory to Hydra's search path, if there is one.

    Raises:
        ConfigError: If the manifest does not exist or is invalid.
    """
    try:
        composed = loader.load_configuration("train", [f"{GROUP}={name}", *search], run_mode=RunMode.RUN)
    except MissingConfigException as error:
        absent = str(error.missing_cfg_file).removeprefix(f"{GROUP}/")
        if absent != name:
            raise ConfigError(f"ablation={name}: its defaults name {absent}, which does not exist") from error
        known = nearest(name, _manifests(loader, GROUP))
        raise ConfigError(f"ablation={name} is not one of the choices: {known}") from error
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"ablation={name}: the manifest cannot be read: {' '.join(str(error).split())}") from error
    node = composed.get(GROUP)
    tree: Any = OmegaConf.to_container(node) if OmegaConf.is_config(node) else None
    if not tree:
        raise no_manifest(name)
    try:
        manifest = build_config(ManifestConfig, with_stopping(_complete(tree), _parse(extra)))
        check_metric("show.metric", manifest.show.metric)
        _check_one_value([text for choice in manifest.environments.values() for text in choice.overrides])
        _check_one_value(manifest.settings)
        check_comparable(manifest.show)
        arms = tuple(_arms(manifest))
    except ConfigError as error:
        raise ConfigError(f"ablation={name}: {error}") from error
    return Ablation(name, manifest, arms, tuple(_check_extra(extra)))


def no_manifest(name: str) -> ConfigError:
    """Return the error that a file of an ablation is empty, or has its keys elsewhere."""
    return ConfigError(f"ablation={name} has no keys of a manifest: begin the file with the line # @package {GROUP}")


def _manifests(loader: ConfigLoader, group: str) -> Iterator[str]:
    """Yield the names of all manifests in a group and its subgroups."""
    for option in loader.get_group_options(group):
        yield f"{group}/{option}".removeprefix(f"{GROUP}/")
    for inner in loader.list_groups(group):
        yield from _manifests(loader, f"{group}/{inner}")


def _complete(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with the defaults of omitted keys, and without entries that are set to null."""
    full = {"settings": [], "add_one": {}, "leave_one_out": {}, **tree}
    show = full.get("show", {})
    if isinstance(show, Mapping):
        full["show"] = {"score": "final", "metric": RETURN, "last": 5, "figures": list(FIGURES), **show}
    if isinstance(full.get("environments"), Mapping):
        full["environments"] = {
            name: {"overrides": [], **choice} if isinstance(choice, Mapping) else choice
            for name, choice in full["environments"].items()
            if choice is not None
        }
    if isinstance(full.get("arms"), Mapping):
        full["arms"] = _complete_arms(full["arms"])
    for key in ("add_one", "leave_one_out"):
        if isinstance(full[key], Mapping):
            full[key] = {
                base: _complete_arms(arms) if isinstance(arms, Mapping) else arms for base, arms in full[key].items()
            }
    return full


def _complete_arms(arms: Mapping[str, Any]) -> dict[str, Any]:
    """Return arms as mappings with all keys. In a manifest an arm may be just a list of overrides."""
    return {
        label: {"differs": [], "title": None, **({"overrides": arm} if isinstance(arm, list) else arm)}
        if isinstance(arm, list | Mapping)
        else arm
        for label, arm in arms.items()
        if arm is not None
    }


def _arms(manifest: ManifestConfig) -> Iterator[Arm]:
    """Yield every arm of a manifest.

    Raises:
        ConfigError: If there is no baseline or no environment, if two arms have the same label, or an arm is invalid.
    """
    if manifest.baseline not in manifest.arms:
        raise ConfigError(f"baseline={manifest.baseline} is not an arm: {nearest(manifest.baseline, manifest.arms)}")
    seeds = manifest.seeds
    if not isinstance(seeds, str) and (not seeds or len(set(seeds)) < len(seeds)):
        raise ConfigError(f"seeds={format_value(seeds)} is empty or has a seed twice: give different seeds")
    if not manifest.environments:
        raise ConfigError("environments is empty: name at least one file of conf/env")
    for name, choice in manifest.environments.items():
        if not choice.low < choice.high:
            raise ConfigError(f"environments.{name}: low={choice.low:g} must be less than high={choice.high:g}")
    labels = set()
    for arm in (*_free_arms(manifest), *_derived_arms(manifest)):
        if arm.label in labels:
            raise ConfigError(f"there are two arms {arm.label}: give each its own label")
        labels.add(arm.label)
        _check_one_value(arm.overrides)
        yield arm


def _free_arms(manifest: ManifestConfig) -> Iterator[Arm]:
    for label, choice in manifest.arms.items():
        declared = (*_keys(manifest.arms[manifest.baseline].overrides), *_keys(choice.overrides), *choice.differs)
        yield Arm(label, choice.title or label, tuple(choice.overrides), manifest.baseline, declared)


def _derived_arms(manifest: ManifestConfig) -> Iterator[Arm]:
    for groups, word, sign in ((manifest.add_one, "plus", "+"), (manifest.leave_one_out, "minus", "−")):
        for base, choices in groups.items():
            if base not in manifest.arms:
                key = "add_one" if word == "plus" else "leave_one_out"
                raise ConfigError(f"{key}.{base}: there is no such arm: {nearest(base, manifest.arms)}")
            origin = manifest.arms[base]
            for name, choice in choices.items():
                title = choice.title or f"{sign} {name}"
                overrides = (*origin.overrides, *choice.overrides)
                declared = (*_keys(choice.overrides), *choice.differs)
                yield Arm(f"{base}_{word}_{name}", title, overrides, base, declared)


def _keys(texts: Sequence[str]) -> list[str]:
    """Return the keys that overrides name, except presets, whose name does not say which keys they change."""
    keys = [override.key_or_group for override in _parse(texts)]
    return [key for key in keys if key not in ("agent", "experiment")]


def _parse(texts: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(texts))
    except HydraException as error:
        raise ConfigError(f"one of {format_value(list(texts))} cannot be read: write key=value") from error


def _check_one_value(texts: Sequence[str]) -> None:
    """Refuse sweeps, and keys that the manifest sets elsewhere, among the overrides of a manifest."""
    for override in _parse(texts):
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line} is a sweep: an arm has one value of each key")
        if override.key_or_group in ("seed", "env", "arm", GROUP):
            raise ConfigError(f"{override.input_line} may not be set here: use the manifest's own keys")


def _check_extra(texts: Sequence[str]) -> Sequence[str]:
    """Refuse overrides of the command line that would change the arms."""
    for override in _parse(texts):
        if override.key_or_group in ("env", "arm", "agent", "experiment"):
            raise ConfigError(f"{override.input_line} does not go with ablation=...: the manifest decides it")
        several = override.is_sweep_override() and len(list(override.sweep_string_iterator())) > 1
        if several and override.key_or_group != "seed":
            raise ConfigError(f"{override.input_line} does not go with ablation=...: only seed may have several values")
    return texts


def cells(ablation: Ablation) -> list[ArmInEnvironment]:
    """Return every arm in every environment, with its overrides.

    If a key is overridden twice, the later override counts. Overrides of the command line come last.
    """
    manifest = ablation.manifest
    seeds = manifest.seeds if isinstance(manifest.seeds, str) else f"[{','.join(map(str, manifest.seeds))}]"
    extra = [str(override.input_line) for override in _parse(ablation.extra) if not is_stopping_key(override)]
    made = []
    for environment, choice in manifest.environments.items():
        first = [f"env={environment}", f"budget={manifest.budget}", f"seed={seeds}", *manifest.settings]
        for arm in ablation.arms:
            texts = [*first, *choice.overrides, *arm.overrides, *extra, f"arm={arm.label}"]
            made.append(ArmInEnvironment(arm, environment, last_of_each_key(texts)))
    return made


def last_of_each_key(texts: Sequence[str]) -> list[str]:
    """Return the last override of each key, and none of a key that a later ~key deletes."""
    last: dict[str, str] = {}
    for override in _parse(texts):
        if override.is_delete() and last.pop(override.key_or_group, None) is not None:
            continue
        last[override.get_key_element()] = str(override.input_line)
    return list(last.values())


def ablations_in(texts: Sequence[str], loader: ConfigLoader, search: Sequence[str] = ()) -> list[Ablation]:
    """Return the ablations that overrides name with `ablation=`; empty if they name none.

    Args:
        texts: Overrides.
        loader: Hydra's configuration loader.
        search: The override that adds a directory to Hydra's search path, if there is one.

    Raises:
        ConfigError: If a manifest does not exist or is invalid.
    """
    if not any(text.startswith(f"{GROUP}=") for text in texts):
        return []
    overrides = _parse(texts)
    names = [
        name
        for override in overrides
        if override.key_or_group == GROUP and override.value() is not None
        for name in (
            override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_element_as_str()]
        )
    ]
    extra = [str(override.input_line) for override in overrides if override.key_or_group != GROUP]
    return [read_ablation(name, extra, loader, search) for name in names]


FIXED = ("budget", "env", "evaluation")
"""Keys in which arms may not differ: they are compared at equal budget, on the same task, with the same evaluation."""
SAME_TASK = ("env.backend", "env.num_envs", "env.workers")
"""The exceptions: the same task on another implementation, or several at a time."""


def check_arms(ablation: Ablation, configs: Mapping[tuple[str, str], TrainConfig]) -> None:
    """Check that each arm differs from the arm it is compared with in the declared keys only.

    Args:
        ablation: The ablation.
        configs: The configuration of a run, by label of the arm and by environment.

    Raises:
        ConfigError: If an arm differs in an undeclared key or in one of `FIXED` (other than
            those of `SAME_TASK`), or equals another arm.
    """
    for environment in ablation.manifest.environments:
        seen: dict[str, str] = {}
        for arm in ablation.arms:
            own = configs[arm.label, environment]
            differences = config_difference(configs[arm.against, environment], own)
            where = f"ablation={ablation.name}: arm {arm.label} differs from {arm.against} in"
            for key, (theirs, ours) in differences.items():
                words = f"{where} {key}={format_value(ours)} (there {format_value(theirs)})"
                if _within(key, FIXED) and key not in SAME_TASK:
                    raise ConfigError(f"{words}: arms may not differ in {', '.join(FIXED)}")
                if not _within(key, arm.declared):
                    raise ConfigError(f"{words}, which it does not declare: add {key} to its differs, or fix the arm")
            twin = seen.setdefault(repr(sorted(flat(experiment_tree(replace(own, agent="-"))).items())), arm.label)
            if twin != arm.label:
                raise ConfigError(
                    f"ablation={ablation.name}: arms {twin} and {arm.label} are the same experiment on {environment}: "
                    "change or remove one"
                )


def _within(key: str, keys: Sequence[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)
