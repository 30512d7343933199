"""Replay bugs of well-known code bases, each planted in a copy of the sources and caught by the test beside it."""

import contextlib
import gc
import io
import multiprocessing
import os
import shutil
import sys
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from matrix import matrix

ROOT = Path(__file__).parents[1]
STORAGE, WINDOWS, FRAMES, REPLAY, PRIORITIES, TREE, RETURNS = (
    f"src/qohort/replay/{name}.py"
    for name in ("storage", "windows", "frames", "ring", "prioritized", "sum_tree", "lambda_returns")
)
ROUNDS = "src/qohort/agent/rounds.py"
ACTING = "src/qohort/agent/acting.py"
LOSS, MODULE, NETWORKS = "src/qohort/agent/td_loss.py", "src/qohort/agent/learner.py", "src/qohort/networks/layers.py"

LOOP = "test_replay.py::test_the_environment_loop_stores_final_observations_and_bootstraps_truncations"
ROUND_BY_ROUND = "test_rounds.py::test_blocks_of_rounds_equal_single_steps[three environments]"
UNIFORM = "test_replay.py::test_equals_a_list_based_oracle_through_saving_and_restoring"
N_STEP = "test_priorities.py::test_n_step_and_prioritised_replay_equal_oracles_through_saving_and_restoring"
LISTS = "test_priorities.py::test_trees_equal_lists"
DRIFT = "test_priorities.py::test_a_tree_of_many_numbers_does_not_drift"
FED_BACK = "test_priorities.py::test_the_learner_feeds_back_the_td_errors_as_they_are"
STACKS = "test_frames.py::test_frames_stored_once_are_whole_observations"
BLOCKS = "test_lambda_returns.py::test_blocks_of_a_replay_have_their_returns"
ROLLOUTS = "test_lambda_returns.py::test_a_rollout_is_gone_through_without_replacement_with_its_returns"
WEIGHTS = "test_heads.py::test_importance_weights_are_applied_once"
NOISE = "test_networks.py::test_a_noisy_layer_equals_the_reference_and_is_quiet_without_noise"
NOT_DOUBLE = "test_td_loss.py::test_choice_and_value_are_the_targets_so_it_is_not_double_q_learning"
SETTING = "test_config.py::test_dqn_is_that_of_mnih_et_al_and_nothing_hidden"

Mutant = namedtuple("Mutant", "file text instead test")
MUTANTS = {
    "what follows an episode's last step is the next one's first observation (cleanrl#460)": Mutant(
        ACTING, 'info.get("final_obs", new_observation)', "new_observation", LOOP
    ),
    "what follows a window is the next slot's observation": Mutant(
        STORAGE,
        'rows("next_observation", found.last)',
        'rows("observation", (found.last + stride) % capacity)',
        N_STEP,
    ),
    "n-step returns cross truncations (tf-agents#939)": Mutant(
        STORAGE, 'rows["ended"] = transition.ended', 'rows["ended"] = transition.terminated', N_STEP
    ),
    "blocks cross truncations": Mutant(
        STORAGE, 'rows["ended"] = transition.ended', 'rows["ended"] = transition.terminated', BLOCKS
    ),
    "rollouts cross truncations": Mutant(
        STORAGE, 'rows["ended"] = transition.ended', 'rows["ended"] = transition.terminated', ROLLOUTS
    ),
    "a frame stack crosses a truncation (dopamine#213)": Mutant(
        FRAMES, "np.where(transition.ended, 0,", "np.where(transition.terminated, 0,", STACKS
    ),
    "an episode's final frame is the first of the next": Mutant(
        FRAMES, "frames[of_member, of_batch, -1] = self.finals", "self.finals", STACKS
    ),
    "a frame is overwritten while a stack still has it": Mutant(
        FRAMES, "slots + self._stack * spec.num_envs", "slots + spec.num_envs", STACKS
    ),
    "a block stores the first observation of the next episode": Mutant(
        ROUNDS,
        '"next_observation": outcome.next_observation',
        '"next_observation": outcome.observation',
        ROUND_BY_ROUND,
    ),
    "a block takes truncations for terminations": Mutant(
        ROUNDS, '"continues": ~outcome.terminated', '"continues": ~ended', ROUND_BY_ROUND
    ),
    "a block does not draw the newest transition": Mutant(
        ROUNDS, "np.repeat(added[1:], new)", "np.repeat(added[1:] - 1, new)", ROUND_BY_ROUND
    ),
    "a block has the exploration of the step after": Mutant(
        ROUNDS, "progress.at(after_step - num_envs,", "progress.at(after_step,", ROUND_BY_ROUND
    ),
    "an evaluation counts what follows its end": Mutant(
        "src/qohort/agent/tensor_evaluation.py",
        "torch.where(running, outcome.reward.double(), 0.0)",
        "outcome.reward.double()",
        "test_rounds.py::test_an_evaluation_plays_the_episodes_of_a_slow_loop",
    ),
    "uniform windows cross the ring's seam (FastTD3#6)": Mutant(
        REPLAY, "index = (index + oldest[:, None, None]) % self.capacity", "pass", N_STEP
    ),
    "prioritised windows cross the ring's seam": Mutant(
        PRIORITIES, "complete = self._added - self._incomplete", "complete = self._added", N_STEP
    ),
    "blocks cross the ring's seam": Mutant(RETURNS, "(oldest + row[..., None]", "(row[..., None]", BLOCKS),
    "γ in place of γⁿ (lightning-bolts)": Mutant(
        WINDOWS, "(running, power, discount)", '(running, gamma * rows("continues", slot), discount)', N_STEP
    ),
    "a window has its first step's done flag": Mutant(
        WINDOWS, 'rows("continues", slot)', 'rows("continues", index)', N_STEP
    ),
    "an episode's last n - 1 starts are dropped": Mutant(
        WINDOWS,
        "    last, running = index,",
        "    for step in range(n_step - 1):\n"
        "        ends = rows('ended', (index + step * stride) % capacity)\n"
        "        index = torch.where(ends, (index - stride) % capacity, index)\n"
        "    last, running = index,",
        N_STEP,
    ),
    "a tree leaves out what is in a node that is not full (cleanrl#546)": Mutant(
        TREE, "(stop - 1) // FAN + 1", "stop // FAN", LISTS
    ),
    "a tree's sums are float32 and drift (flashbax#52)": Mutant(
        TREE, "torch.zeros(shape, dtype=torch.float64)", "torch.zeros(shape, dtype=torch.float32)", DRIFT
    ),
    "the Huber loss ignores importance weights (tianshou)": Mutant(
        LOSS, 'if "weight" in batch:', 'if "weight" in batch and getattr(self.head, "loss", None) != "huber":', WEIGHTS
    ),
    "the TD error told is the weighted squared one": Mutant(
        LOSS, 'loss = batch["weight"] * loss', 'loss = td_error = batch["weight"] * loss', WEIGHTS
    ),
    "priorities are made of weighted squared errors (lightning-bolts)": Mutant(
        MODULE,
        "update_priorities(result.td_error)",
        'update_priorities(batch["weight"] * result.td_error.square())',
        FED_BACK,
    ),
    "priorities are made of squared errors": Mutant(PRIORITIES, "np.abs(td_error", "np.square(td_error", N_STEP),
    "factorised noise is independent": Mutant(
        NETWORKS,
        "(noise_out.unsqueeze(-1) * noise_in)",
        "torch.randn_like(self.weight) * (noise_out.unsqueeze(-1) * noise_in).abs()",
        NOISE,
    ),
    "the value after a truncation is 0": Mutant(
        STORAGE, '"continues": transition.continues', '"continues": ~transition.ended', UNIFORM
    ),
    "the environment loop terminates what is truncated": Mutant(
        ACTING, "terminated=terminated", "terminated=ended", LOOP
    ),
    "Double Q-learning is hidden in the loss (RLlib, tianshou)": Mutant(
        LOSS,
        "self._policy(next_online, head.mean(policy_distribution), batch)",
        'self._policy(next_online, head.mean(self._distribution(online, batch, "next_observation", "policy")), batch)',
        NOT_DOUBLE,
    ),
    "Double Q-learning is hidden in the setting": Mutant(
        "conf/agent/dqn.yaml", "/bootstrap: greedy", "/bootstrap: double", SETTING
    ),
}

# Each run is forked from a process that has these, which take seconds, and not Qohort.
CONTEXT = multiprocessing.get_context("forkserver")
LIBRARIES = "gymnasium hydra hypothesis numba pytest pytorch_lightning scipy.stats torch._inductor.compile_fx"
CONTEXT.set_forkserver_preload(LIBRARIES.split())


def run(copy, tests):
    """Run tests of a copy in this process: pytest's exit code, what failed by which error, and what was printed."""
    import hypothesis
    import numba

    assert "qohort" not in sys.modules
    gc.freeze()  # pytest collects at its end, which takes a second with what is imported already
    os.chdir(copy)
    sys.path[:0], sys.dont_write_bytecode = [str(copy / "src")], True
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they would take longer than most tests
    numba.config.DISABLE_JIT = True  # so would compiling, and what reads beyond an array might end the process
    once = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # a failure is enough, it need not be small
    options = {"phases": once, "derandomize": True, "database": None, "report_multiple_bugs": False}
    hypothesis.settings.register_profile("mutants", **options)
    hypothesis.settings.load_profile("mutants")

    class Failures(dict):
        def pytest_runtest_makereport(self, item, call):
            if call.excinfo is not None:
                self[item.nodeid.partition("[")[0]] = call.excinfo.type.__name__

    failures, printed = Failures(), io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *(f"tests/{one}" for one in tests)], [failures])
    import qohort

    assert Path(qohort.__file__) == copy / "src" / "qohort" / "__init__.py"
    return int(code), dict(failures), printed.getvalue()


def run_copy(tmp_path, tests, mutant=None):
    for name in ("src", "conf", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if mutant is not None:
        file = tmp_path / mutant.file
        file.write_text(file.read_text().replace(mutant.text, mutant.instead))
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        return pool.submit(run, tmp_path, tests).result()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bug_has_its_place(name):
    mutant = MUTANTS[name]
    assert (ROOT / mutant.file).read_text().count(mutant.text) == 1, f"{mutant.text!r} is not once in {mutant.file}"


@pytest.mark.slow
@pytest.mark.matrix
def test_without_a_mutation_all_of_them_pass(tmp_path):
    code, failures, printed = run_copy(tmp_path, sorted({mutant.test for mutant in MUTANTS.values()}))
    assert (code, failures) == (0, {}), printed


IN_CI = (
    "n-step returns cross truncations (tf-agents#939)",
    "γ in place of γⁿ (lightning-bolts)",
    "what follows an episode's last step is the next one's first observation (cleanrl#460)",
    "a frame stack crosses a truncation (dopamine#213)",
    "a block takes truncations for terminations",
    "the Huber loss ignores importance weights (tianshou)",
)


@pytest.mark.parametrize("name", matrix(MUTANTS, [], in_ci=IN_CI))
def test_a_planted_bug_is_caught(tmp_path, name):
    mutant = MUTANTS[name]
    code, failures, printed = run_copy(tmp_path, [mutant.test], mutant)
    assert (code, failures) == (1, {f"tests/{mutant.test.partition('[')[0]}": "AssertionError"}), (
        printed
    )  # found wrong, not broken
