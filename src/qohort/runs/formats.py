"""The formats of an exported policy. Each is written, read again, and compared with the policy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from qohort.config.errors import ConfigError
from qohort.runs.exported import CONFIG, WEIGHTS, quiet, read_exported
from qohort.runs.policy import Policy, PolicyNetwork

INPUT, OUTPUT = "observation", "action_values"
"""The names of the input `[batch, ...]` and of the output `[batch, actions]` of an ONNX file."""
TOLERANCE = 1e-4
"""The largest difference of action values that is accepted, as a fraction of the largest action value, or of 1."""

Network = Callable[[NDArray[Any]], NDArray[Any]]
"""Maps observations `[B, ...]` to action values `[B, A]`."""


class Check(NamedTuple):
    """How an exported policy compares with the policy of the run."""

    observations: int
    """The number of observations."""
    same_actions: int
    """For how many of them the greedy action is the same."""
    difference: float
    """The largest difference of an action value."""


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        title: What it is, in words.
        file: The name of its file.
        packages: The packages that it needs, by the names with which they are imported.
        write: Writes a policy to a file.
        read: Returns the network that a file has, for the comparison.
    """

    title: str
    file: str
    packages: tuple[str, ...]
    write: Callable[[Policy, Path], None]
    read: Callable[[Path], Network]


def compare(policy: Policy, network: Network, observations: NDArray[Any], name: str) -> Check:
    """Compare a network with that of a policy, in batches of several sizes.

    Args:
        policy: The policy.
        network: The network.
        observations: Observations, `[N, ...]`.
        name: The format, for messages.

    Raises:
        ConfigError: If action values differ by more than `TOLERANCE`.
    """
    batches = _batches(observations)
    ours = np.concatenate([policy.values(batch) for batch in batches])
    theirs = np.concatenate([network(batch) for batch in batches])
    if theirs.shape != ours.shape or not np.isfinite(theirs).all():
        raise ConfigError(
            f"format={name} returns action values of shape {theirs.shape}, not {ours.shape}, or some that are not "
            "finite: nothing was written"
        )
    difference = float(np.abs(theirs - ours).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(ours).max()))
    if difference > allowed:
        raise ConfigError(
            f"format={name} computes other action values than the policy, by up to {difference:.3g}, and at most "
            f"{allowed:.3g} is rounding: nothing was written"
        )
    # Within that, a greedy action is another one only where two values are equal up to rounding.
    return Check(len(ours), int((theirs.argmax(1) == ours.argmax(1)).sum()), difference)


def _batches(observations: NDArray[Any]) -> list[NDArray[Any]]:
    """Return observations as batches of 1, 2, 3 and then 64."""
    bounds = [0, 1, 3, 6, *range(70, len(observations), 64), len(observations)]
    return [observations[start:stop] for start, stop in itertools.pairwise(bounds) if start < stop]


def _write_weights(policy: Policy, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().contiguous() for name, tensor in policy.network.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})


def _read_weights(path: Path) -> Network:
    assert (path.parent / CONFIG).is_file()
    policy = read_exported(path.parent)
    return policy.values


def program_of(policy: Policy) -> torch.export.ExportedProgram:
    """Return the network as a `torch.export` program, for batches of any size.

    Raises:
        ConfigError: If torch cannot trace the network.
    """
    space = policy.observation_space
    example = np.stack([np.zeros(space.shape or (), space.dtype)] * 2)
    batch = torch.export.Dim("batch", min=1)
    try:
        with quiet():
            program = torch.export.export(policy.network, (torch.from_numpy(example),), dynamic_shapes=({0: batch},))
    except Exception as error:  # the network is the user's, and torch raises many kinds of errors
        raise _untraceable(policy.network, error) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _untraceable(network: PolicyNetwork, error: Exception) -> ConfigError:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ConfigError(
        f"torch.export cannot trace {type(network.network).__name__}: {reason.strip()[:200]}; format=safetensors "
        "needs no tracing"
    )


def _write_program(policy: Policy, path: Path) -> None:
    with quiet():
        torch.export.save(program_of(policy), path)


def _read_program(path: Path) -> Network:
    with quiet():
        module = torch.export.load(path).module()

    def network(observations: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            values: NDArray[Any] = module(torch.from_numpy(observations)).numpy()
        return values

    return network


def _write_onnx(policy: Policy, path: Path) -> None:
    import onnx

    program = program_of(policy)
    with quiet():
        try:
            made = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
        except Exception as error:  # as above
            raise ConfigError(f"format=onnx: torch.onnx cannot convert the network: {_first_line(error)}") from error
    assert made is not None
    model = made.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # Python's names and lines
    del model.graph.metadata_props[:]
    _name_batch(model)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def _name_batch(model: Any) -> None:
    """Call the free axis of a model `batch`. Its name is that of a symbol of the tracer."""
    free = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = axis.dim_param.replace(free, "batch")


def _read_onnx(path: Path) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def network(observations: NDArray[Any]) -> NDArray[Any]:
        values: NDArray[Any] = session.run([OUTPUT], {INPUT: observations})[0]
        return values

    return network


FORMATS: Mapping[str, Format] = {
    "safetensors": Format("weights, for qohort.load", WEIGHTS, ("safetensors",), _write_weights, _read_weights),
    "torch_export": Format("torch.export program", "policy.pt2", (), _write_program, _read_program),
    "onnx": Format("ONNX graph", "policy.onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _read_onnx),
}


def chosen(name: str) -> Sequence[str]:
    """Return the formats that `format=name` asks for."""
    return tuple(FORMATS) if name == "all" else (name,)
