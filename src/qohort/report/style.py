"""How a report looks: what the manifest, a style file and the command line choose, and the colour of each arm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from qohort.config.checks import check
from qohort.config.errors import ConfigError
from qohort.config.messages import format_value, nearest
from qohort.experiments.ablation import Ablation
from qohort.experiments.presentation import COLUMNS, FIGURES, Show
from qohort.report.palette import BASELINE, BASELINE_DASHES, DASHES, PALETTE
from qohort.report.scores import SCORES
from qohort.runs.metrics import check_metric


@dataclass(frozen=True)
class Look:
    """The colour and the dashes of an arm, the same in every figure, and whether it is the baseline."""

    color: str
    dashes: Any
    baseline: bool


def chosen(manifest: Show, file: str | None, given: Mapping[str, Any]) -> Show:
    """Return what a report shows.

    Args:
        manifest: What the manifest says.
        file: A YAML file of the keys of `Show`; None for none. Its keys count more than the manifest's.
        given: Keys of the command line; None for those that are not given. They count most.

    Raises:
        ConfigError: If the file cannot be read, or a key or value is wrong.
    """
    tree = asdict(manifest)
    for own in (_read(file) if file is not None else {}, given):
        for key, value in own.items():
            if value is None:
                continue
            both = isinstance(value, Mapping) and isinstance(tree.get(key), Mapping)
            tree[key] = {**tree[key], **value} if both else value
    show: Show = check(Show, tree, "show")
    if show.score not in SCORES:
        raise ConfigError(f"show.score={show.score} is not one of the choices: {nearest(show.score, SCORES)}")
    check_metric("show.metric", show.metric)
    for column in show.columns or ():
        if column not in COLUMNS:
            raise ConfigError(f"show.columns: {column} is not one of the choices: {nearest(column, COLUMNS)}")
    _check_matplotlib(show)
    return show


def _read(file: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"style={file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(tree, Mapping):
        raise ConfigError(f"style={file} is not a group of keys: write keys of show, as width: 5")
    for key in tree:
        if key not in Show.__dataclass_fields__:
            raise ConfigError(f"style={file} has an unknown key {key}: {nearest(str(key), Show.__dataclass_fields__)}")
    return dict(tree)


def _check_matplotlib(show: Show) -> None:
    for label, color in show.colors.items():
        from matplotlib.colors import is_color_like

        if not is_color_like(color):
            raise ConfigError(f"show.colors.{label}={color} is not a colour: write #rrggbb or a name of matplotlib's")
    if show.matplotlib is not None and not Path(show.matplotlib).is_file():
        import matplotlib.style

        if show.matplotlib not in matplotlib.style.library:
            known = nearest(show.matplotlib, matplotlib.style.library)
            raise ConfigError(f"show.matplotlib={show.matplotlib} is not a file or a style of matplotlib: {known}")


def rc_params(show: Show) -> dict[str, Any]:
    """Return the settings of the matplotlib style that a report uses; empty for none."""
    if show.matplotlib is None:
        return {}
    import matplotlib as mpl
    import matplotlib.style

    if Path(show.matplotlib).is_file():
        params: Any = mpl.rc_params_from_file(show.matplotlib, use_default_template=False)
    else:
        params = matplotlib.style.library[show.matplotlib]
    return dict(params)


def styled(ablation: Ablation, show: Show) -> Ablation:
    """Return an ablation with the titles of a report, which are checked against its arms and environments.

    Args:
        ablation: The ablation.
        show: What the report shows.

    Raises:
        ConfigError: If `show` names an arm that is not there.
    """
    labels = [arm.label for arm in ablation.arms]
    for key, names, known in (
        ("arms", show.arms or (), labels),
        ("colors", show.colors, labels),
        ("titles", show.titles, [*labels, *ablation.manifest.environments, *FIGURES]),
    ):
        for name in names:
            if name not in known:
                raise ConfigError(f"show.{key}: there is no {name}: {nearest(name, known)}")
    if show.arms is not None and (not show.arms or len(set(show.arms)) < len(show.arms)):
        raise ConfigError(f"show.arms={format_value(list(show.arms))} must name each arm once")
    arms = tuple(replace(arm, title=show.titles.get(arm.label, arm.title)) for arm in ablation.arms)
    environments = ablation.manifest.environments
    if show.metric != ablation.manifest.show.metric:  # `low` and `high` are of the manifest's
        environments = {name: replace(one, low=math.nan, high=math.nan) for name, one in environments.items()}
    title = show.title or ablation.manifest.title
    manifest = replace(ablation.manifest, title=title, show=show, environments=environments)
    return replace(ablation, arms=arms, manifest=manifest)


def looks(ablation: Ablation) -> dict[str, Look]:
    """Return the look of each arm by label. It does not depend on which arms are shown, and in which order."""
    given, baseline = ablation.manifest.show.colors, ablation.manifest.baseline
    made = {}
    others = [arm.label for arm in ablation.arms if arm.label != baseline]
    for number, label in enumerate(others):
        turn, place = divmod(number, len(PALETTE))
        made[label] = Look(given.get(label, PALETTE[place]), DASHES[turn % len(DASHES)], False)
    if baseline:
        made[baseline] = Look(given.get(baseline, BASELINE), BASELINE_DASHES, True)
    return made
