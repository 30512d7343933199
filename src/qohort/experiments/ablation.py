"""Ablations: one manifest declares arms, environments, seeds and budget; the sweep and the report come from it.

An arm is a label and a list of overrides, as on the command line, and nothing else: what a manifest says becomes the
overrides of ordinary jobs, which `qohort.experiments.sweep.fold` makes cohorts of.
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
from qohort.config.identity import experiment_tree
from qohort.config.messages import as_typed, nearest
from qohort.config.schema import TrainConfig

GROUP = "ablation"


FIGURES = ("scores", "differences", "improvement", "curves", "profiles")


@dataclass(frozen=True)
class EnvironmentChoice:
    """An environment of an ablation.

    Attributes:
        low: The score that counts as 0 where environments are put together.
        high: The score that counts as 1.
        overrides: Settings of every arm in this environment.
    """

    low: float
    high: float
    overrides: Sequence[str]


@dataclass(frozen=True)
class ArmChoice:
    """An arm as the manifest has it.

    Attributes:
        overrides: What makes it.
        differs: Keys in which it differs from the arm it is compared with, besides those that `overrides` names: what
            a preset (`agent=rainbow`) changes.
        title: Its name in tables and figures; null for its label.
    """

    overrides: Sequence[str]
    differs: Sequence[str]
    title: str | None


@dataclass(frozen=True)
class Show:
    """What a report shows.

    Attributes:
        score: Which column arms are ordered and compared by. The best evaluation is none: it flatters.
        last: Evaluations in the mean of the last ones.
        figures: Which figures.
    """

    score: Literal["final", "last", "auc"]
    last: PositiveInt
    figures: Sequence[Literal["scores", "differences", "improvement", "curves", "profiles"]]


@dataclass(frozen=True)
class ManifestConfig:
    """A manifest, `conf/ablation/<name>.yaml`.

    Attributes:
        title: What the ablation asks, in a line.
        baseline: The arm that others are compared with.
        seeds: Hydra's `range(0,30)`, or a list.
        budget: env_steps of every run.
        settings: Overrides of every arm.
        environments: By the name in `conf/env`.
        arms: By label.
        add_one: By arm, by name: overrides on top of that arm's, which make the arm `<arm>_plus_<name>`.
        leave_one_out: The same for `<arm>_minus_<name>`.
        show: What the report shows.
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


@dataclass(frozen=True)
class Arm:
    """An arm.

    Attributes:
        label: Its name in directories and files.
        title: Its name in tables and figures.
        overrides: What makes it.
        against: The label of the arm it is compared with; its own where it is compared with none.
        declared: Keys in which its configuration may differ from that arm's.
    """

    label: str
    title: str
    overrides: tuple[str, ...]
    against: str
    declared: tuple[str, ...]


@dataclass(frozen=True)
class Ablation:
    """A manifest that was read.

    Attributes:
        name: Its name, as in `ablation=<name>`.
        manifest: What it says.
        arms: Its arms, in its order.
        extra: Overrides that were given besides, which come last.
    """

    name: str
    manifest: ManifestConfig
    arms: tuple[Arm, ...]
    extra: tuple[str, ...]


class ArmInEnvironment(NamedTuple):
    """One arm in one environment, with the overrides that make its runs."""

    arm: Arm
    environment: str
    overrides: list[str]


def read_ablation(name: str, extra: Sequence[str], loader: ConfigLoader, search: Sequence[str] = ()) -> Ablation:
    """Read a manifest.

    Args:
        name: A file in `conf/ablation`, without its ending.
        extra: Overrides that were given besides.
        loader: Composes configurations.
        search: An override that tells the loader where else to look.

    Raises:
        ConfigError: If it is not there, or wrong.
    """
    try:
        composed = loader.load_configuration("train", [f"{GROUP}={name}", *search], run_mode=RunMode.RUN)
    except MissingConfigException as error:
        known = nearest(name, _manifests(loader, GROUP))
        raise ConfigError(f"ablation={name} is not one of the choices: {known}") from error
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"ablation={name}: it cannot be read: {' '.join(str(error).split())}") from error
    tree: Any = OmegaConf.to_container(composed.get(GROUP, {}))
    if not tree:
        raise ConfigError(f"ablation={name} is empty: begin the file with the line # @package {GROUP}")
    try:
        manifest = build_config(ManifestConfig, _complete(tree))
        _check_one_value([text for choice in manifest.environments.values() for text in choice.overrides])
        _check_one_value(manifest.settings)
        arms = tuple(_arms(manifest))
    except ConfigError as error:
        raise ConfigError(f"ablation={name}: {error}") from error
    return Ablation(name, manifest, arms, tuple(_check_extra(extra)))


def _manifests(loader: ConfigLoader, group: str) -> Iterator[str]:
    """The names of all manifests in a group and the groups in it."""
    for option in loader.get_group_options(group):
        yield f"{group}/{option}".removeprefix(f"{GROUP}/")
    for inner in loader.list_groups(group):
        yield from _manifests(loader, f"{group}/{inner}")


def _complete(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with what may be left out of it, and without what an inheriting one has set to null."""
    full = {"settings": [], "add_one": {}, "leave_one_out": {}, **tree}
    full["show"] = {"score": "final", "last": 5, "figures": list(FIGURES), **full.get("show", {})}
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
    """Arms, each of which may be a list of overrides alone."""
    return {
        label: {"differs": [], "title": None, **({"overrides": arm} if isinstance(arm, list) else arm)}
        if isinstance(arm, list | Mapping)
        else arm
        for label, arm in arms.items()
        if arm is not None
    }


def _arms(manifest: ManifestConfig) -> Iterator[Arm]:
    """Every arm of a manifest.

    Raises:
        ConfigError: If there are none, two with one label, or a mistake in one.
    """
    if manifest.baseline not in manifest.arms:
        raise ConfigError(f"baseline={manifest.baseline} is not an arm: {nearest(manifest.baseline, manifest.arms)}")
    if not manifest.environments:
        raise ConfigError("environments has none: name at least one of conf/env")
    for name, choice in manifest.environments.items():
        if not choice.low < choice.high:
            raise ConfigError(f"environments.{name}: low={choice.low:g} must be less than high={choice.high:g}")
    labels = set()
    for arm in (*_free_arms(manifest), *_derived_arms(manifest)):
        if arm.label in labels:
            raise ConfigError(f"there are two arms {arm.label}: each needs a label of its own")
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
    """The keys that overrides name, but those of presets, which do not say what they change."""
    keys = [override.key_or_group for override in _parse(texts)]
    return [key for key in keys if key not in ("agent", "experiment")]


def _parse(texts: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(texts))
    except HydraException as error:
        raise ConfigError(f"one of {as_typed(list(texts))} cannot be read: write key=value") from error


def _check_one_value(texts: Sequence[str]) -> None:
    """Refuse sweeps, and what the manifest itself decides, among the overrides of a manifest."""
    for override in _parse(texts):
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line} is a sweep: an arm has one value of each key")
        if override.key_or_group in ("seed", "env", "arm", GROUP):
            raise ConfigError(f"{override.input_line} may not be set here: the manifest's own keys decide it")


def _check_extra(texts: Sequence[str]) -> Sequence[str]:
    """Refuse on the command line what would change which arms there are."""
    for override in _parse(texts):
        if override.key_or_group in ("env", "arm", "agent", "experiment"):
            raise ConfigError(f"{override.input_line} does not go with ablation=...: the manifest decides it")
        if override.is_sweep_override() and override.key_or_group != "seed":
            raise ConfigError(f"{override.input_line} does not go with ablation=...: only seed may have several values")
    return texts


def cells(ablation: Ablation) -> list[ArmInEnvironment]:
    """Every arm in every environment. Of two overrides of a key the later one counts, and the command line is last."""
    manifest = ablation.manifest
    seeds = manifest.seeds if isinstance(manifest.seeds, str) else f"[{','.join(map(str, manifest.seeds))}]"
    made = []
    for environment, choice in manifest.environments.items():
        first = [f"env={environment}", f"budget={manifest.budget}", f"seed={seeds}", *manifest.settings]
        for arm in ablation.arms:
            texts = [*first, *choice.overrides, *arm.overrides, *ablation.extra, f"arm={arm.label}"]
            made.append(ArmInEnvironment(arm, environment, _counting(texts)))
    return made


def _counting(texts: Sequence[str]) -> list[str]:
    """The overrides that count: of two with one key the later, and none of a key that a later ~key takes back."""
    last: dict[str, str] = {}
    for override in _parse(texts):
        if override.is_delete() and last.pop(override.key_or_group, None) is not None:
            continue
        last[override.get_key_element()] = str(override.input_line)
    return list(last.values())


def ablations_in(texts: Sequence[str], loader: ConfigLoader, search: Sequence[str] = ()) -> list[Ablation]:
    """The ablations that overrides ask for; none where there is no `ablation=` among them.

    Args:
        texts: Overrides.
        loader: Composes configurations.
        search: An override that tells the loader where else to look.

    Raises:
        ConfigError: If one is wrong.
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
"""What no two arms may differ in: a comparison is at equal budget, on the same task, scored in the same way."""


def check_arms(ablation: Ablation, configs: Mapping[tuple[str, str], TrainConfig]) -> None:
    """Check that each arm differs from the one it is compared with in the declared keys, and in nothing else.

    Args:
        ablation: The ablation.
        configs: A configuration of each arm in each environment.

    Raises:
        ConfigError: If an arm differs in what it does not declare, in the budget, or in nothing.
    """
    for environment in ablation.manifest.environments:
        seen: dict[str, str] = {}
        for arm in ablation.arms:
            own = configs[arm.label, environment]
            differences = config_difference(configs[arm.against, environment], own)
            where = f"ablation={ablation.name}: arm {arm.label} differs from {arm.against} in"
            for key, (theirs, ours) in differences.items():
                words = f"{where} {key}={as_typed(ours)} (there {as_typed(theirs)})"
                if _within(key, FIXED):
                    raise ConfigError(f"{words}: arms may not differ in {', '.join(FIXED)}")
                if not _within(key, arm.declared):
                    raise ConfigError(f"{words}, which it does not declare: add {key} to its differs, or mend the arm")
            twin = seen.setdefault(repr(sorted(flat(experiment_tree(replace(own, agent="-"))).items())), arm.label)
            if twin != arm.label:
                raise ConfigError(
                    f"ablation={ablation.name}: arms {twin} and {arm.label} are the same experiment on {environment}: "
                    "each must have something of its own"
                )


def config_difference(theirs: TrainConfig, ours: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The keys in which two experiments differ, but their names, with both values; null where one has no such key."""
    one, other = (flat(experiment_tree(replace(config, agent="-"))) for config in (theirs, ours))
    keys = dict.fromkeys((*one, *other))
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of mappings as one mapping with dotted keys."""
    pairs: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            pairs.update(flat(value, f"{prefix}{key}."))
        else:
            pairs[f"{prefix}{key}"] = value
    return pairs


def _within(key: str, keys: Sequence[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)
