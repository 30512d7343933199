"""The model card of an exported policy: `README.md`, with the metadata of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml
from gymnasium import spaces

import qohort
from qohort.config.errors import ConfigError
from qohort.config.identity import NOT_HASHED, config_tree
from qohort.config.members import evaluation_environment
from qohort.config.messages import format_value
from qohort.config.schema import TrainConfig
from qohort.networks.layers import NoisyLinear, pixel_scale
from qohort.runs.code import component_packages
from qohort.runs.directory import RunDirectory
from qohort.runs.formats import FORMATS, INPUT, Check
from qohort.runs.listing import differences, in_words
from qohort.runs.manifest import as_typed
from qohort.runs.policy import Policy
from qohort.statistics import MIN_RUNS, format_returns, iqm

CARD = "README.md"


class Seeds(NamedTuple):
    """The final returns of the runs that differ from the exported one only in their seed."""

    returns: Mapping[int, float]
    """By seed, that of the exported run included. Empty if that is not finished."""
    other_code: int
    """The number of finished runs that are not counted because other code made them."""


def model_card(
    directory: RunDirectory,
    policy: Policy,
    checkpoint: str,
    checks: Mapping[str, Check],
    video: Path | None,
    license: str | None,
    repository: str | None,
) -> str:
    """Return the text of the model card.

    Args:
        directory: The run.
        policy: Its policy.
        checkpoint: The name of the checkpoint that the policy is of.
        checks: For each format that is exported, how it compares with the policy.
        video: The video beside the card; None if there is none.
        license: An identifier of a licence; None if none is named.
        repository: The repository of the Hub; None for a directory.
    """
    config, manifest, actions = policy.config, directory.manifest(), _discrete(policy)
    result = directory.result()
    if result is not None and result["env_steps"] != policy.env_steps:
        result = None  # that of other weights
    seeds = Seeds({}, 0) if result is None else _seeds(directory, manifest.get("code"))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qohort.runs", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    text: str = environment.get_template("model_card.md.j2").render(
        metadata=_yaml(_metadata(config, seeds, checks, license)),
        agent=config.agent,
        env=config.env.name,
        seed=config.seed,
        env_steps=policy.env_steps,
        version=qohort.__version__,
        video=None if video is None else video.name,
        usage=_usage(policy, checks, repository),
        actions=int(actions.n),
        first=int(actions.start),
        facts=[*_facts(policy)],
        environment=_yaml(_environment(config)),
        scores=[*_scores(config, result, seeds, policy.env_steps)],
        base=f"agent={config.agent.partition('+')[0]}",
        differences=[(key, format_value(ours)) for key, (_, ours) in differences(config).items()],
        command=_command(manifest.get("command") or []),
        origin=dict(_origin(config, manifest, result, checkpoint)),
        checks=checks,
        formats=FORMATS,
    )
    return text


def _discrete(policy: Policy) -> spaces.Discrete:
    assert isinstance(policy.action_space, spaces.Discrete)  # others are not exported
    return policy.action_space


def _seeds(directory: RunDirectory, code: str | None) -> Seeds:
    returns, other_code = {}, 0
    for path in sorted(directory.path.resolve().parent.glob("seed-*")):
        sibling = RunDirectory(path)
        try:
            result = sibling.result()
        except ConfigError:  # damaged
            continue
        if result is None:
            continue
        if sibling.code() == code:
            returns[int(result["seed"])] = float(result["final_return"])
        else:
            other_code += 1
    return Seeds(dict(sorted(returns.items())), other_code)


def _metadata(config: TrainConfig, seeds: Seeds, checks: Mapping[str, Check], license: str | None) -> dict[str, Any]:
    """Return the metadata with which the Hub finds and lists a model."""
    tags = ["reinforcement-learning", "deep-reinforcement-learning", "deep-q-network", "qohort", config.env.name]
    tree: dict[str, Any] = {"library_name": "qohort", "pipeline_tag": "reinforcement-learning"}
    tree["tags"] = [*tags, config.agent, *(["onnx"] if "onnx" in checks else [])]
    if license is not None:
        tree["license"] = license
    metrics = []
    if config.seed in seeds.returns:
        metrics.append({"type": "mean_reward", "name": "final return", "value": seeds.returns[config.seed]})
    if len(seeds.returns) >= MIN_RUNS:
        name = f"IQM of the final returns of {len(seeds.returns)} seeds"
        metrics.append({"type": "iqm_return", "name": name, "value": iqm([*seeds.returns.values()])})
    if metrics:
        task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
        dataset = {"type": config.env.name, "name": config.env.name}
        tree["model-index"] = [
            {"name": config.agent, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}
        ]
    return tree


def _usage(policy: Policy, checks: Mapping[str, Check], repository: str | None) -> dict[str, str]:
    """Return the lines of Python that use each file, by package."""
    dtype, first = policy.observation_space.dtype, int(_discrete(policy).start)
    batch, action = f"np.asarray(observation, np.{dtype})[None]", f".argmax(){f' + {first}' if first else ''}"
    place, imports, here = '"."', "", "  # this directory"
    if repository is not None:
        place, imports, here = (
            f'snapshot_download("{repository}")',
            "from huggingface_hub import snapshot_download\n",
            "",
        )
    lines = {
        "safetensors": (
            "qohort",
            f"{imports}import qohort\npolicy = qohort.load({place}){here}\naction = policy.act(observation)",
        ),
        "torch_export": (
            "torch",
            "import numpy as np, torch\n"
            f'network = torch.export.load("{FORMATS["torch_export"].file}").module()\n'
            f"action = network(torch.from_numpy({batch})){action}",
        ),
        "onnx": (
            "onnxruntime",
            "import numpy as np, onnxruntime\n"
            f'session = onnxruntime.InferenceSession("{FORMATS["onnx"].file}")\n'
            f'action = session.run(None, {{"{INPUT}": {batch}}})[0]{action}',
        ),
    }
    return dict(lines[name] for name in checks)


def _facts(policy: Policy) -> Iterator[str]:
    """Yield what there is to know of observations and of the network."""
    config, space = policy.config, policy.observation_space
    if isinstance(space, spaces.Discrete):
        last = int(space.start + space.n - 1)
        yield f"An observation is an integer from {space.start} to {last}, `{space.dtype}`."
    else:
        yield f"An observation is an array of shape {tuple(space.shape or ())}, `{space.dtype}`."
    if config.env.frame_stack > 1:
        before = "zeros" if config.env.frame_padding == "zero" else "copies of it"
        yield (
            f"It has the newest {config.env.frame_stack} frames on its first axis, the newest last. "
            f"Before the first one of an episode there are {before}."
        )
    if pixel_scale(space) != 1:
        yield "The network divides it by 255."
    if policy.network.mean is not None:
        yield "The network normalises it with the mean and the variance that observations had in training."
    if not policy.scalar:
        yield "The network has a distribution of the return for each action. Its action value is the mean of that."
    if any(isinstance(layer, NoisyLinear) for layer in policy.network.modules()):
        yield "The noise of its noisy layers is off: they have their mean weights."


def _environment(config: TrainConfig) -> dict[str, Any]:
    env = evaluation_environment(config)
    tree: dict[str, Any] = {"id": env.id, "kwargs": dict(env.kwargs), "wrappers": [dict(one) for one in env.wrappers]}
    if env.frame_stack > 1:
        tree |= {"frame_stack": env.frame_stack, "frame_padding": env.frame_padding}
    return tree


def _scores(config: TrainConfig, result: Mapping[str, Any] | None, seeds: Seeds, env_steps: int) -> Iterator[str]:
    if result is None:
        yield f"None: this is a checkpoint at {env_steps:,} of {config.budget:,} env_steps."
        return
    episodes, epsilon = config.evaluation.episodes, config.evaluation.epsilon
    number = "one episode" if episodes == 1 else f"{episodes} episodes"
    yield f"Final return: {result['final_return']:.1f}, over {number} at the end of training, with ε = {epsilon:g}."
    if len(seeds.returns) > 1:
        words = format_returns([*seeds.returns.values()])
        yield f"Final returns of the same settings with seeds {in_words([*seeds.returns])}: {words}."
    if len(seeds.returns) >= MIN_RUNS:
        yield "IQM is the mean of the middle half of the seeds. The interval is a bootstrap over seeds."
    if seeds.other_code:
        yield f"Not counted: {seeds.other_code} more seeds, which were trained with other code."


def _command(words: Sequence[str]) -> str | None:
    """Return the command that trained the run, without paths and logging; None if Python did."""
    script = [*words[:2]] if words[:1] == ["qohort"] else [*words[:1]] if words[:1] == ["train.py"] else []
    if not script:
        return None
    kept = ("seed", "bits")
    left_out = [key for key in NOT_HASHED if key not in kept]
    settings = [one for one in words[len(script) :] if one.lstrip("+~").partition("=")[0].split(".")[0] not in left_out]
    return as_typed([*script, *settings])


def _origin(
    config: TrainConfig, manifest: Mapping[str, Any], result: Mapping[str, Any] | None, checkpoint: str
) -> Iterator[tuple[str, Any]]:
    """Yield what made the run, from `manifest.json` and `result.json`."""
    yield "checkpoint", f"`{checkpoint}`"
    if result is not None:
        yield "fingerprint of the run", f"`{result['fingerprint']}`"
    yield "code", f"`{manifest.get('code')}`"
    if manifest.get("git_commit"):
        changed = ", with uncommitted changes" if manifest.get("git_dirty") else ""
        yield "git commit", f"`{manifest['git_commit']}`{changed}"
    if own := component_packages(config_tree(config)):
        yield "packages of its own", ", ".join(f"`{name}`" for name in own)
    versions = {"Python": manifest.get("python"), **(manifest.get("packages") or {})}
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    for key in ("cpu", "gpu", "compile", "bits"):
        if manifest.get(key):
            yield key, manifest[key]


def _yaml(tree: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=1000)
    return text.rstrip()
