"""Compiled programs that are found on the disk, instead of traced again."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.utils._pytree import tree_structure

import qohort
import qohort.cohort.compiler
from qohort.cohort.kept_programs import KeptPrograms
from qohort.cohort.native import Library, cache_directory
from qohort.cohort.program import Compiler
from qohort.config.composition import CONFIG_DIRECTORY
from qohort.config.errors import ConfigError
from qohort.config.members import check_config
from qohort.environments.tensor.classic_control import CartPole
from qohort.environments.tensor.registry import TENSOR_ENVIRONMENTS
from qohort.runs.programs import _code, is_unchanged, kept_programs, programs_identity, sources
from qohort.runs.training import train

SHORT = (
    "env.backend=tensor",
    "compile=inductor",
    "budget=300",
    "learning_starts=60",
    "log_every=50",
    "evaluation.every=150",
    "evaluation.episodes=2",
    "logger=none",
    "trainer.progress_bar=false",
)


def composed(*overrides: str):
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        return compose("train", [*SHORT, *overrides])


def run(directory: Path, *overrides: str) -> dict[int, str]:
    """Train a cohort; each seed's fingerprint."""
    return {result["seed"]: result["fingerprint"] for result in train(composed(*overrides, f"output_dir={directory}"))}


def library(directory: Path, name: str = "a.so", results=(0, {"x": 1}), constants=()) -> Library:
    (directory / name).write_bytes(b"code")
    return Library(str(directory / name), tree_structure(results), list(constants))


def step(state, inputs):
    return state + inputs


def other_step(state, inputs):
    return state + inputs


def test_what_was_kept_is_found_by_all_that_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = KeptPrograms("run").file(tmp_path, "sums", step, "layout", "")
    assert file is not None
    assert KeptPrograms("run").find(file) is None
    KeptPrograms("run").keep(file, library(tmp_path, constants=[torch.arange(3)]))
    again = KeptPrograms("run").file(tmp_path, "sums", partial(step, inputs=1), "layout", "")
    assert again == file
    found = KeptPrograms("run").find(again)
    assert found is not None
    assert found.path == str(tmp_path / "a.so")
    assert found.results == tree_structure((0, {"x": 1}))
    assert torch.equal(found.constants[0], torch.arange(3))
    others = [
        KeptPrograms("other run").file(tmp_path, "sums", step, "layout", ""),
        KeptPrograms("run").file(tmp_path, "other sums", step, "layout", ""),
        KeptPrograms("run").file(tmp_path, "sums", other_step, "layout", ""),
        KeptPrograms("run").file(tmp_path, "sums", step, "other layout", ""),
    ]
    others.append(KeptPrograms("run").file(tmp_path, "sums", step, "layout", "other settings"))
    monkeypatch.setenv("CXXFLAGS", "-O0")
    others.append(KeptPrograms("run").file(tmp_path, "sums", step, "layout", ""))
    monkeypatch.delenv("CXXFLAGS")
    for name, value in (
        ("get_num_threads", 77),
        ("are_deterministic_algorithms_enabled", True),
        ("is_anomaly_enabled", True),
        ("get_default_dtype", torch.float64),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(torch, name, lambda value=value: value)
            others.append(KeptPrograms("run").file(tmp_path, "sums", step, "layout", ""))
    assert len({file, *others}) == 11
    assert KeptPrograms(None).file(tmp_path, "sums", step, "layout", "") is None


def test_of_programs_that_cannot_be_told_apart_only_one_is_kept(tmp_path: Path) -> None:
    kept = KeptPrograms("run")
    assert kept.file(tmp_path, "sums", step, "layout", "") is not None
    assert kept.file(tmp_path, "sums", step, "layout", "") is None
    assert kept.find(None) is None
    kept.keep(None, library(tmp_path))


def test_a_program_is_neither_found_nor_kept_after_its_code_was_edited(tmp_path: Path) -> None:
    valid = [True]
    kept = KeptPrograms("run", is_valid=lambda: valid[0])
    file = kept.file(tmp_path, "sums", step, "layout", "")
    valid[0] = False
    kept.keep(file, library(tmp_path))
    assert KeptPrograms("run").find(file) is None
    KeptPrograms("run").keep(file, library(tmp_path))
    assert kept.find(file) is None
    valid[0] = True
    assert kept.find(file) is not None


def test_a_file_that_is_damaged_or_gone_is_traced_again(tmp_path: Path) -> None:
    kept = KeptPrograms("run")
    file = kept.file(tmp_path, "sums", step, "layout", "")
    assert file is not None
    kept.keep(file, library(tmp_path))
    whole = file.read_bytes()
    for damaged in (b"", whole[:-9], b"cos\nno_such_function\n(tR."):
        file.write_bytes(damaged)
        assert kept.find(file) is None
    file.write_bytes(whole)
    assert kept.find(file) is not None
    (tmp_path / "a.so").unlink()
    assert kept.find(file) is None
    kept.keep(file, library(tmp_path, "b.so"))
    found = kept.find(file)
    assert found is not None
    assert found.path.endswith("b.so")
    assert [one.name for one in file.parent.iterdir()] == [file.name]


def test_what_cannot_be_written_does_no_harm_and_leaves_nothing(tmp_path: Path) -> None:
    unwritable = library(tmp_path, constants=[lambda: 1])
    kept = KeptPrograms("run")
    kept.keep(kept.file(tmp_path, "other", step, "layout", ""), unwritable)
    assert not list((tmp_path / "qohort").iterdir())
    (tmp_path / "qohort").rmdir()
    (tmp_path / "qohort").write_text("a file")
    kept = KeptPrograms("run")
    file = kept.file(tmp_path, "sums", step, "layout", "")
    kept.keep(file, library(tmp_path))
    assert kept.find(file) is None


@pytest.mark.parametrize(
    "other",
    [
        {"name": "b.so"},
        {"results": (0, {"y": 1})},
        {"constants": [torch.zeros(2)]},
        {"constants": [torch.ones(2), torch.ones(2)]},
    ],
)
def test_programs_that_are_compared_must_be_the_same(tmp_path: Path, other: dict[str, object]) -> None:
    kept = KeptPrograms("run", checked=True)
    file = kept.file(tmp_path, "sums", step, "layout", "")
    constants = [torch.ones(2)] if "constants" in other else []
    kept.keep(file, library(tmp_path, constants=constants))
    assert kept.find(file) is None
    kept.keep(file, library(tmp_path, constants=constants))
    with pytest.raises(AssertionError, match="another program"):
        kept.keep(file, library(tmp_path, **other))


def test_a_program_from_the_disk_does_the_same_for_any_number_of_members(tmp_path: Path, monkeypatch) -> None:
    """With constants in the function, several results, writes to the state, and inputs by name."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    table = torch.linspace(0, 1, 5)

    def step(state, inputs):
        state["sum"].add_(inputs["x"] * table)
        return {"b": state["sum"].sum(-1), "a": (state["sum"].tanh(), inputs["x"][:, 0] + 1)}

    def results(members: int, compiler: Compiler):
        state = {"sum": torch.arange(5.0 * members).reshape(members, 5)}
        inputs = {"x": torch.arange(5.0 * members).reshape(members, 5).sin()}
        program = compiler.program("it", step, state)
        call = program.bind(inputs)
        call.play_all([call, call])
        return [state["sum"], call.results()["b"], *call.results()["a"]]

    traced = {members: results(members, Compiler("inductor")) for members in (3, 1, 8)}
    results(3, Compiler("inductor", kept=KeptPrograms("run")))
    monkeypatch.setattr(Compiler, "_trace", None)  # from now on, from the disk or not at all
    for members, expected in traced.items():
        found = results(members, Compiler("inductor", kept=KeptPrograms("run")))
        assert all(map(torch.equal, found, expected))


def test_a_second_run_traces_nothing_and_ends_with_the_same_bits(tmp_path: Path, monkeypatch) -> None:
    traced = {
        name: run(tmp_path / f"traced {name}", *overrides)
        for name, overrides in {
            "one": ("seed=3",),
            "three": ("seed=[0,1,2]", "gamma=0.9", "optimizer.lr=0.002"),
        }.items()
    }
    monkeypatch.setenv("QOHORT_PROGRAMS", "kept")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    built = []
    compile_native = qohort.cohort.compiler.compile_native
    monkeypatch.setattr(
        qohort.cohort.compiler, "compile_native", lambda *some: built.append(1) or compile_native(*some)
    )
    assert run(tmp_path / "first", "seed=3") == traced["one"]
    programs = len(built)
    assert programs >= 4
    assert run(tmp_path / "second", "seed=3") == traced["one"]
    assert run(tmp_path / "cohort", "seed=[0,1,2]", "gamma=0.9", "optimizer.lr=0.002") == traced["three"]
    assert len(built) == programs  # other seeds, another number of members, and other numbers that are members' own
    run(tmp_path / "other", "seed=3", "network.hidden=[16]")
    assert len(built) > programs


@pytest.mark.parametrize(
    ("overrides", "count"),
    [(("replay=prioritized", "seed=[0,1]"), 4), (("env.backend=gymnasium", "exploration=boltzmann", "seed=4"), 4)],
)
def test_a_new_process_imports_no_compiler_if_it_finds_all_programs(
    tmp_path: Path, overrides: tuple[str, ...], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do programs that Python calls one at a time need it."""
    monkeypatch.setenv("QOHORT_PROGRAMS", "kept")
    first = run(tmp_path / "first", *overrides)
    assert len(list(cache_directory().glob("qohort/*.program"))) >= count
    code = (
        "import sys\n"
        "from qohort.cli.train import main\n"
        "main()\n"
        "assert not {'qohort.cohort.compiler', 'torch._inductor.compile_fx'} & {*sys.modules}, 'it was imported'\n"
    )
    arguments = [*SHORT, *overrides, f"output_dir={tmp_path / 'second'}"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = [json.loads(file.read_text()) for file in (tmp_path / "second").rglob("result.json")]
    assert {result["seed"]: result["fingerprint"] for result in results} == first


@pytest.mark.parametrize("key", ["deterministic", "detect_anomaly"])
def test_settings_of_the_trainer_that_change_a_trace_find_other_programs(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of tests is checked: it would fail if it found a program of the other setting."""
    plain = run(tmp_path / "plain", "seed=3", "network=linear")
    monkeypatch.setenv("QOHORT_PROGRAMS", "kept")
    run(tmp_path / "kept", "seed=3", "network=linear")
    traced = []
    trace = Compiler._trace
    monkeypatch.setattr(Compiler, "_trace", lambda *some: traced.append(1) or trace(*some))
    try:
        run(tmp_path / "other", "seed=3", "network=linear", f"trainer.{key}=true")
    finally:
        torch.use_deterministic_algorithms(False)
        torch.autograd.set_detect_anomaly(False)
    assert traced
    traced.clear()
    assert run(tmp_path / "again", "seed=3", "network=linear") == plain
    assert not traced


@pytest.mark.parametrize(
    "override",
    [
        "network.hidden=[16]",
        "bootstrap=double",
        "budget=301",
        "+env.kwargs={sutton_barto_reward: true}",
        "replay.n_step=2",
    ],
)
def test_the_identity_of_programs_changes_with_the_experiment(override: str) -> None:
    def identity(*overrides: str) -> str | None:
        return programs_identity(check_config(composed(*overrides))[0])

    plain = identity()
    assert plain is not None
    assert plain == identity("seed=7", "gamma=0.5", "optimizer.lr=0.3", "output_dir=elsewhere", "logger=csv")
    assert identity(override) != plain
    assert identity("max_grad_norm=null") != identity("max_grad_norm=3") == identity("max_grad_norm=4")


def test_the_identity_of_programs_changes_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a comment: a file is not parsed for this."""
    config = check_config(composed())[0]
    before = programs_identity(config)
    copy = tmp_path / "qohort"
    shutil.copytree(Path(qohort.__file__).parent / "agent", copy / "agent")
    monkeypatch.setattr(qohort, "__file__", str(copy / "__init__.py"))
    found = []
    for change in ("", "# a comment\n"):
        with (copy / "agent" / "update.py").open("a") as file:
            file.write(change)
        sources.cache_clear()
        _code.cache_clear()
        found.append(programs_identity(config))
    monkeypatch.undo()
    sources.cache_clear()
    _code.cache_clear()
    assert len({before, *found}) == 3
    assert programs_identity(config) == before


def test_code_that_was_written_after_the_start_is_told_from_what_runs(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "update.py"
    file.write_text("")
    monkeypatch.setattr("qohort.runs.programs.sources", lambda: [file])
    os.utime(file, (qohort.IMPORTED_AT - 1,) * 2)
    assert is_unchanged()
    os.utime(file, (qohort.IMPORTED_AT + 1,) * 2)
    assert not is_unchanged()
    file.unlink()
    assert not is_unchanged()


@pytest.mark.parametrize("key", ["network", "callbacks.mine"])
def test_programs_with_components_of_a_users_own_are_traced_at_each_start(key: str) -> None:
    config = check_config(composed())[0]
    group, _, name = key.partition(".")
    node = {"_target_": "my_project.Own"}
    assert programs_identity(replace(config, **{group: {name: node} if name else node})) is None


def test_programs_with_a_users_own_tensor_environment_are_traced_at_each_start(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(CartPole):
        pass

    monkeypatch.setitem(TENSOR_ENVIRONMENTS, "CartPole-v1", (Mine, {}))
    assert programs_identity(check_config(composed())[0]) is None


def test_an_unknown_use_of_programs_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("QOHORT_PROGRAMS", "keep")
    with pytest.raises(ConfigError, match="QOHORT_PROGRAMS=keep is not one of checked, kept, traced"):
        run(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    monkeypatch.setenv("QOHORT_PROGRAMS", "traced")
    kept = kept_programs(check_config(composed())[0])
    assert kept.file(tmp_path, "sums", SimpleNamespace, "layout", "") is None
