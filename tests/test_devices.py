"""Compiled runs on a CPU and on a GPU: the promises of exactness, no fallbacks, and graphs of calls."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from qohort.agent.learner import QLearning
from qohort.cohort.program import Compiler
from qohort.cohort.tape import Player
from qohort.config import errors
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.runs.interruption import STOP
from qohort.runs.training import train

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICES = [
    pytest.param("cpu", marks=[pytest.mark.slow, pytest.mark.matrix]),
    pytest.param("gpu", marks=GPU),
]

SHORT = (
    *("env.backend=tensor", "budget=600", "learning_starts=100", "log_every=100", "batch_size=33"),
    *("evaluation.every=300", "evaluation.episodes=2", "evaluation.max_episode_steps=100", "logger=none"),
    *("checkpoint.every=200", "trainer.progress_bar=false", "callbacks=[none]"),
)


def run(device: str, directory: Path, seeds: list[int], *overrides: str) -> dict[int, str]:
    """Train a cohort; each seed's fingerprint."""
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        seed = f"seed={seeds}".replace(" ", "")
        config = compose("train", [*SHORT, *overrides, seed, f"trainer={device}", f"output_dir={directory}"])
    return {result["seed"]: result["fingerprint"] for result in train(config)}


VARIANTS = {
    "dqn": ("agent=dqn",),
    "rainbow": ("agent=rainbow",),
    "minatar": ("env=minatar", "network.hidden=[11]"),
    "rainbow on images": ("env=minatar", "agent=rainbow", "batch_size=16"),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_member_is_the_same_alone_and_in_a_cohort(
    device: str, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = run(device, tmp_path / "alone", [3], *VARIANTS[name])
    many = run(device, tmp_path / "many", [7, 5, 1, 3, 0], *VARIANTS[name])
    assert alone[3] == many[3] != many[0]
    assert "cannot be played from a tape" not in capsys.readouterr().err
    for manifest in tmp_path.rglob("manifest.json"):
        assert json.loads(manifest.read_text())["compile_fallbacks"] == {}


@pytest.mark.parametrize("device", DEVICES)
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(device, tmp_path / "undisturbed", [0, 3])
    between_steps = QLearning.between_steps
    with monkeypatch.context() as patch:

        def stopped_on_the_way(module: QLearning) -> None:
            if module.progress.env_steps >= 300:
                patch.setattr(STOP, "signal", "SIGTERM")
            between_steps(module)

        patch.setattr(QLearning, "between_steps", stopped_on_the_way)
        with pytest.raises(errors.Interrupted):
            run(device, tmp_path / "resumed", [0, 3])
    assert run(device, tmp_path / "resumed", [0, 3]) == undisturbed


@pytest.mark.parametrize("name", [pytest.param("cpu"), pytest.param("cuda", marks=GPU)])
def test_calls_that_are_played_again_do_the_same(name: str) -> None:
    device = torch.device(name)
    state = {"sum": torch.zeros(3, 4, device=device)}

    def add(state: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        state["sum"].add_(inputs["one"])
        return state["sum"] * 2

    program = Compiler("inductor").program("sums", add, state)
    one = torch.ones(3, 4, device=device)
    calls = [program.bind({"one": one}) for _ in range(3)]
    player = Player(device)
    for played in range(1, 5):
        player.play(calls)
        assert (calls[-1].results() == 6 * played).all()
    one.fill_(10)  # a graph reads its inputs anew
    player.play(calls)
    assert (state["sum"] == 12 + 30).all()
