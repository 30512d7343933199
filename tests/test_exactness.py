"""The promises of exactness: a member alone and in any cohort, repeated, interrupted and resumed."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

import qohort.cohort.native
from matrix import matrix
from qohort.agent.learner import QLearning
from qohort.cohort.native import CACHE_BYTES, NativeCall
from qohort.config import errors
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.runs.interruption import STOP
from qohort.runs.training import train

SHORT = (
    "budget=400",
    "learning_starts=60",
    "log_every=50",
    "evaluation.every=200",
    "evaluation.episodes=2",
    "evaluation.max_episode_steps=100",
    "logger=none",
    "trainer.progress_bar=false",
)
ODD = ("batch_size=33", "network.hidden=[37,21]", "train_every=3", "gradient_steps=2", "target_network.every=70")
FROZEN = ("env=frozenlake", "env.kwargs.is_slippery=true")


def run(directory: Path, seeds: list[int], *overrides: str) -> dict[int, str]:
    """Train a cohort; each seed's fingerprint."""
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        seed = f"seed={seeds}".replace(" ", "")
        config = compose("train", [*SHORT, *overrides, seed, f"output_dir={directory}"])
    return {result["seed"]: result["fingerprint"] for result in train(config)}


VARIANTS = {
    "mlp, odd shapes": ODD,
    "layer norm, clipped": (*ODD, "network.layer_norm=true", "max_grad_norm=0.1"),
    "linear": ("network=linear", "optimizer.lr=0.01", "exploration=multiplicative"),
    "table, no replay": (*FROZEN, "network=table", "replay=none", "optimizer=sgd", "optimizer.lr=0.5"),
    "no replay, one row": ("replay=none", "target_network=none", "network.hidden=[24,24]"),
    "no target": ("target_network=none", "head=squared", "max_grad_norm=null"),
    "polyak": ("target_network=polyak", "target_network.tau=0.05", "lr_schedule=linear"),
    "polyak, rmsprop": ("target_network=polyak", "optimizer=rmsprop", "lr_schedule=multiplicative"),
    "epsilon by episode": ("exploration=multiplicative", "exploration.epsilon.per=episodes"),
    "boltzmann": ("exploration=boltzmann",),
    "minatar": ("env=minatar", "network=minatar", "network.hidden=[11]", "batch_size=16"),
    "atari": ("env=atari", "network=nature", "batch_size=4", "train_every=40", "replay.capacity=300"),
    "evaluation with epsilon": ("exploration=constant", "evaluation.epsilon=0.2"),
    "three environments": ("env.num_envs=3", "batch_size=7", "train_every=2"),
    "spread, scaled, reset": (
        *("env.num_envs=3", "exploration.spread=7", "reward_scale=0.5", "reward_clip=0.3", "reset_every=90"),
        *("gradient_steps=3", "train_every=2"),
    ),
    "normalised, three environments": (
        *("env.num_envs=3", "batch_size=7", "train_every=2"),
        *("normalize_observations=true", "normalize_rewards=true", "reward_clip=2"),
    ),
}


FAST = ("three environments",)


@pytest.mark.parametrize("name", matrix(VARIANTS, FAST))
def test_a_member_is_the_same_alone_and_in_a_cohort(tmp_path: Path, name: str) -> None:
    overrides = (*VARIANTS[name], "compile=none")
    alone = run(tmp_path / "alone", [3], *overrides)
    pair = run(tmp_path / "pair", [3, 0], *overrides)
    many = run(tmp_path / "many", [7, 5, 1, 3, 0], *overrides)
    assert alone[3] == pair[3] == many[3]
    assert pair[0] == many[0] != alone[3]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["inductor", "fx"])
@pytest.mark.parametrize("name", [pytest.param("mlp, odd shapes", marks=pytest.mark.matrix), "layer norm, clipped"])
def test_compiled_members_are_the_same_alone_in_five_and_in_thirty(tmp_path: Path, mode: str, name: str) -> None:
    overrides = (*VARIANTS[name], f"compile={mode}", "budget=200")
    alone = run(tmp_path / "alone", [3], *overrides)
    five = run(tmp_path / "five", [0, 1, 2, 3, 4], *overrides)
    thirty = run(tmp_path / "thirty", list(range(30)), *overrides)
    assert alone[3] == five[3] == thirty[3]
    assert five == {seed: thirty[seed] for seed in range(5)}
    assert len(set(thirty.values())) == 30


@pytest.mark.slow
def test_compiled_members_that_are_gone_over_in_parts_are_the_same_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty of CleanRL's networks exceed the cache, so that the update goes over them in parts; one alone does not."""
    parts, sizes = qohort.cohort.native.parts_of, []

    def noted(state: Sequence[Tensor], share: slice | None = None) -> list[slice]:
        sizes.append(sum(one.nbytes for one in state))
        return parts(state, share)

    monkeypatch.setattr(qohort.cohort.native, "parts_of", noted)
    overrides = ("network.hidden=[120,84]", "compile=inductor", "budget=200")
    thirty = run(tmp_path / "thirty", list(range(30)), *overrides)
    assert max(sizes) > 2 * CACHE_BYTES
    sizes.clear()
    for seed in (3, 29):  # of the first part and of the last
        assert run(tmp_path / "alone", [seed], *overrides)[seed] == thirty[seed]
    assert max(sizes) <= CACHE_BYTES
    assert len(set(thirty.values())) == 30


SHARED = ("mlp, odd shapes", "three environments", "rainbow", "pictures, three steps")


@pytest.mark.parametrize("name", matrix(SHARED, (), in_ci=("mlp, odd shapes", "pictures, three steps")))
def test_threads_that_share_the_members_out_change_no_bits(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {
        "rainbow": ("agent=rainbow", "batch_size=16"),
        "pictures, three steps": ("env=minatar", "network.hidden=[11]", "batch_size=16", "replay.n_step=3"),
    }
    overrides = (*(VARIANTS | own)[name], "env.backend=tensor", "compile=inductor")
    seeds = [7, 5, 1, 3, 0]
    one = run(tmp_path / "one", seeds, *overrides)
    shares, play_all = [], NativeCall.play_all

    def noted(calls: Sequence[NativeCall]) -> None:
        shares.append((len(calls[0].records), len(calls)))
        play_all(calls)

    monkeypatch.setattr(NativeCall, "play_all", staticmethod(noted))
    monkeypatch.setattr(qohort.cohort.native, "CALLS_FOR_THREADS", 2)
    assert run(tmp_path / "three", seeds, *overrides, "trainer.threads=3") == one
    assert {count for count, calls in shares if calls > 1} == {3}  # a short call by itself has one
    assert max(calls for _, calls in shares) > 16
    assert torch.get_num_threads() == 1


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("overrides", [("agent=rainbow", "batch_size=16"), ("env.backend=gymnasium",)])
def test_programs_called_from_cpp_and_from_python_have_the_same_bits(
    tmp_path: Path, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of the inputs decides which, and so the number of members."""
    played, play_all = [], NativeCall.play_all

    def noted(calls: Sequence[NativeCall]) -> None:
        played.append(len(calls))
        play_all(calls)

    monkeypatch.setattr(NativeCall, "play_all", staticmethod(noted))
    from_cpp = run(tmp_path / "cpp", [3, 5], "compile=inductor", *overrides)
    assert 1 in played
    monkeypatch.setattr("qohort.cohort.program.COPIED_BYTES", 0)
    monkeypatch.setattr(qohort.cohort.native.NativeProgram, "run", None)  # calling it is an error
    assert run(tmp_path / "python", [3, 5], "compile=inductor", *overrides) == from_cpp


@pytest.mark.slow
@pytest.mark.matrix
def test_the_same_command_gives_the_same_bits_again(tmp_path: Path) -> None:
    first = run(tmp_path, [3], "compile=fx")
    assert run(tmp_path, [3], "compile=fx", "overwrite=true") == first


def test_a_finished_run_is_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path, [3], "compile=none")
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(tmp_path, [3], "compile=none") == first
    assert "seed 3 is finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_damaged_result_is_told(tmp_path: Path) -> None:
    run(tmp_path, [3], "compile=none")
    (file,) = tmp_path.rglob("result.json")
    file.write_text("{")
    with pytest.raises(errors.ConfigError, match=r"result.json is damaged: delete .*seed-3 to train the run again"):
        run(tmp_path, [3], "compile=none")


class Interrupted(BaseException):
    """Stands for whatever ends a process."""


def interrupt_at(monkeypatch: pytest.MonkeyPatch, env_steps: int) -> None:
    collect = QLearning.collect

    def until_interrupted(module: QLearning) -> int:
        if module.progress.env_steps >= env_steps:
            raise Interrupted
        return collect(module)

    monkeypatch.setattr(QLearning, "collect", until_interrupted)


EXPERIMENTS = CONFIG_DIRECTORY / "experiment"
RESUMED = [
    *("spread, scaled, reset", "mlp, odd shapes", "table, no replay", "polyak", "polyak, rmsprop", "boltzmann"),
    *("three environments", "normalised, three environments", "minatar", "atari"),
]


def rows_less_wall_times(directory: Path) -> list[list[dict[str, float]]]:
    members = []
    for file in sorted(directory.rglob("metrics.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        members.append([{k: v for k, v in row.items() if k not in ("wall_s", "env_steps_per_s")} for row in rows])
    return members


@pytest.mark.parametrize("name", matrix(RESUMED, ["three environments"]))
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    overrides = (*VARIANTS[name], "compile=none", "checkpoint.every=90")
    undisturbed = run(tmp_path / "undisturbed", [0, 3], *overrides)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 300)
        with pytest.raises(Interrupted):
            run(tmp_path / "resumed", [0, 3], *overrides)
    # Packed otherwise than before: one resumes alone, the other follows.
    alone = run(tmp_path / "resumed", [3], *overrides)
    both = run(tmp_path / "resumed", [0, 3], *overrides)
    assert alone[3] == undisturbed[3]
    assert both == undisturbed
    assert rows_less_wall_times(tmp_path / "resumed") == rows_less_wall_times(tmp_path / "undisturbed")


def test_what_is_killed_after_the_last_update_spends_the_rest_of_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("compile=none", "env.backend=gymnasium", "budget=200", "train_every=80", "checkpoint.every=80")
    undisturbed = run(tmp_path / "undisturbed", [3], *overrides)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 190)  # 30 env_steps after the checkpoint that has the last update
        with pytest.raises(Interrupted):
            run(tmp_path / "resumed", [3], *overrides)
    assert run(tmp_path / "resumed", [3], *overrides) == undisturbed


IMAGES = [f"{folder}/{file.stem}" for folder in ("atari", "minatar") for file in EXPERIMENTS.glob(f"{folder}/*.yaml")]
SMALL = (
    *("budget=200", "batch_size=4", "train_every=40", "gradient_steps=1"),
    *("evaluation.episodes=1", "evaluation.max_episode_steps=20"),
)
WITH_ENVIRONMENTS = ("env.num_envs=4", "batch_size=8", "train_every=80")


@pytest.mark.parametrize("name", matrix(sorted(IMAGES), ["minatar/dqn", "minatar/pqn"]))
def test_every_experiment_of_images_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Alone and in a cohort of three, and resumed."""
    if name.startswith("atari"):
        pytest.importorskip("ale_py", reason="needs pip install 'qohort[atari]'")
    overrides = [f"experiment={name}", *SMALL, "compile=none", "checkpoint.every=80"]
    if name.endswith(("pqn", "btr")):
        overrides += WITH_ENVIRONMENTS
    if not name.endswith(("pqn", "stream_q")):
        overrides += ["replay.capacity=300"]
    if name.endswith("stream_q"):
        overrides += ["batch_size=1", "train_every=1"]
    three = run(tmp_path / "three", [7, 3, 0], *overrides)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 160)
        with pytest.raises(Interrupted):
            run(tmp_path / "resumed", [3], *overrides)
    assert run(tmp_path / "resumed", [3], *overrides)[3] == three[3]
    assert len(set(three.values())) == 3


@pytest.mark.slow
@pytest.mark.matrix
def test_what_stops_before_the_first_checkpoint_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = run(tmp_path / "undisturbed", [3], "compile=none")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 300)
        with pytest.raises(Interrupted):
            run(tmp_path / "again", [3], "compile=none")
    assert run(tmp_path / "again", [3], "compile=none") == undisturbed


def test_how_often_checkpoints_are_made_changes_nothing(tmp_path: Path) -> None:
    seldom = run(tmp_path / "seldom", [3], "compile=none")
    often = run(tmp_path / "often", [3], "compile=none", "checkpoint.every=37")
    assert seldom == often


@pytest.mark.slow
@pytest.mark.matrix
def test_an_overwriting_run_that_slurm_has_queued_again_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("compile=none", "overwrite=true", "trainer.progress_bar=true", "evaluation.every=150")
    undisturbed = run(tmp_path / "undisturbed", [3], *overrides)
    printed = capsys.readouterr().out
    assert "400/400 env_steps" in printed
    assert printed.count("400/400") == 1  # with what was evaluated there
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with monkeypatch.context() as patch:
        between_steps = QLearning.between_steps

        def asked_to_stop(module: QLearning) -> None:
            if module.progress.env_steps == 300:
                patch.setattr(STOP, "signal", "SIGTERM")
            between_steps(module)

        patch.setattr(QLearning, "between_steps", asked_to_stop)
        with pytest.raises(errors.Interrupted, match="saved: the same command without overwrite=true resumes the run"):
            run(tmp_path / "queued", [3], *overrides)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run(tmp_path / "queued", [3], *overrides) == undisturbed
    (file,) = (tmp_path / "queued").rglob("manifest.json")
    ((at, before),) = [one.values() for one in json.loads(file.read_text())["resumed"]]
    assert at == 300
    assert before["packages"]["numba"]
    monkeypatch.setenv("SLURM_JOB_ID", "8")  # another job, also queued again, but before it began
    assert run(tmp_path / "queued", [3], *overrides) == undisturbed
    assert json.loads(file.read_text())["resumed"] == []
