import os
import platform
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._inductor.exc import InductorError
from torch.func import vmap

import qohort.cohort.compiler
from qohort.cohort.denormals import denormals_as_zero
from qohort.cohort.held import per_member
from qohort.cohort.native import NativeCall
from qohort.cohort.program import COMPILE_MODES, Compiler, Lifted
from qohort.cohort.stacking import CohortNetwork
from qohort.cohort.state import merge_states, split_state
from qohort.cohort.streams import STREAMS, UniformStream, member_seed
from qohort.networks.vectors import MLP

SPACE = spaces.Box(-1, 1, (4,))
ONES = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "seed"),
    [
        ((0, "network"), 4334430513956379144),
        ((3, "replay"), 8529447876139971898),
        ((3, "environments", 0, 0), 3351804206512274827),
        ((3, "environments", 1, 17), 9132993448199957652),
        ((9223372036854775807, "evaluation", 50000, 9), 1593619956381962017),
    ],
)
def test_seeds_are_those_of_every_published_number(arguments, seed):
    assert member_seed(*arguments) == seed


def test_the_order_of_streams_is_kept():
    assert STREAMS[:6] == ("network", "environments", "exploration", "replay", "noise", "evaluation")


def test_no_two_uses_share_a_seed():
    paths = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (10, 3), (2**33, 1)]
    members = (0, 1, 2, 2**32, 2**32 + 1, 2**63 - 1)
    seeds = [member_seed(seed, stream, *path) for seed in members for stream in STREAMS for path in paths]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_stream_does_not_depend_on_its_neighbours():
    cohort = UniformStream([4, 3, 9], "exploration", (2, 2), block=5)
    alone = UniformStream([3], "exploration", (2, 2), block=5)
    other = UniformStream([3], "replay", (2, 2), block=5)
    for _ in range(13):
        draw = cohort.next()
        assert draw.shape == (3, 2, 2)
        assert np.array_equal(draw[1:2], alone.next())
        assert not np.array_equal(draw[1:2], other.next())
        assert not np.array_equal(draw[0], draw[1])


def test_a_stream_is_its_generators_numbers_in_order():
    stream = UniformStream([3], "noise", (3,), block=4)
    drawn = np.concatenate([stream.next()[0].copy() for _ in range(10)])
    assert np.array_equal(drawn, np.random.Generator(np.random.PCG64(member_seed(3, "noise"))).random(30))
    assert len(set(drawn.tolist())) == 30


@settings(deadline=None, max_examples=60)
@given(
    block=st.integers(1, 5),
    before=st.integers(0, 12),
    after=st.integers(1, 12),
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3, unique=True),
)
def test_a_restored_stream_goes_on_exactly(block, before, after, seeds):
    """Where the block is full as well: before a multiple of the block, at it, and after it."""
    stream = UniformStream(seeds, "replay", (2,), block)
    for _ in range(before):
        stream.next()
    state = merge_states([split_state(stream.state_dict(), m) for m in range(len(seeds))])
    expected = [stream.next().copy() for _ in range(after)]
    again = UniformStream(seeds, "replay", (2,), block)
    again.next()
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert np.array_equal([again.next().copy() for _ in range(after)], expected)


def build():
    return MLP(SPACE, 3, 1, hidden=(7, 5))


def test_a_networks_initialisation_does_not_depend_on_its_neighbours():
    cohort, alone = CohortNetwork(build, [8, 3, 1]), CohortNetwork(build, [3])
    assert (cohort.size, alone.size) == (3, 1)
    for name, parameter in cohort.parameters_by_name().items():
        assert parameter.shape[0] == 3
        assert torch.equal(parameter[1:2], alone.parameters_by_name()[name])
        assert not torch.equal(parameter[0], parameter[1])


def test_making_networks_leaves_torchs_generator_as_it_was_and_does_not_read_it():
    torch.manual_seed(1)
    first = CohortNetwork(build, [3]).parameters_by_name()
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)
    second = CohortNetwork(build, [3]).parameters_by_name()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_network_is_initialised_from_its_members_stream():
    torch.manual_seed(member_seed(3, "network"))
    plain = build()
    stacked = CohortNetwork(build, [3]).parameters_by_name()
    assert all(torch.equal(stacked[name][0], parameter) for name, parameter in plain.named_parameters())


@pytest.mark.parametrize("tracks", [True, False])
def test_batchnorm_is_refused_with_what_to_use_instead(tracks):
    """Without running statistics it has no buffer, and would mix the rows of the environments when it acts."""
    with pytest.raises(ValueError, match=r"^BatchNorm mixes the rows of a batch and is not supported: use LayerNorm$"):
        CohortNetwork(lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=tracks)), [3])


def forward_of(cohort):
    return lambda parameters, inputs: cohort.member_forward(parameters, inputs["observation"])


def members_of(cohort):
    """An ordinary network for each member."""
    networks = [build() for _ in range(cohort.size)]
    for m, network in enumerate(networks):
        network.load_state_dict({name: value[m] for name, value in cohort.parameters_by_name().items()})
    return networks


@pytest.mark.parametrize("rows", [1, 6])
def test_forward_runs_each_member_on_its_own_batch(rows):
    cohort = CohortNetwork(build, [8, 3, 1])
    observation = torch.randn(3, rows, 4, generator=torch.Generator().manual_seed(0))
    out = cohort(observation)
    assert out.shape == (3, rows, 3, 1)
    for m, network in enumerate(members_of(cohort)):
        torch.testing.assert_close(out[m], network(observation[m]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 33])
def test_forward_of_a_member_has_the_same_bits_alone_and_among_others(rows):
    def wide():
        return MLP(SPACE, 3, 1, hidden=(37, 21), layer_norm=True)

    observation = torch.randn(7, rows, 4, generator=torch.Generator().manual_seed(0))
    seeds = [8, 3, 1, 5, 6, 7, 2]
    whole = CohortNetwork(wide, seeds)(observation)
    for m in range(7):
        alone = CohortNetwork(wide, seeds[m : m + 1])(observation[m : m + 1].clone())
        assert torch.equal(alone, whole[m : m + 1])


def test_a_frozen_copy_is_independent():
    cohort = CohortNetwork(build, [1, 2])
    target = cohort.frozen_copy()
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert all(parameter.requires_grad for parameter in cohort.parameters())
    before = {name: value.clone() for name, value in target.parameters_by_name().items()}
    with torch.no_grad():
        for parameter in cohort.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in target.parameters_by_name().items())


@pytest.mark.parametrize("mode", COMPILE_MODES)
def test_programs_take_denormal_numbers_as_zero_and_nothing_else_does(mode, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    small = torch.full((2, 3), 2e-38)  # half of it is denormal
    state = {"kept": torch.ones(2, 3)}
    program = Compiler(mode).program("halves", lambda state, inputs: inputs["small"] * 0.5 * state["kept"], state)
    for _ in range(2):
        assert torch.equal(program({"small": small}), torch.zeros(2, 3))
        assert (small * 0.5 * state["kept"]).min() > 0
    with denormals_as_zero():
        assert torch.equal(program({"small": small}), torch.zeros(2, 3))
        assert torch.equal(small * 0.5, torch.zeros(2, 3))  # as before the call
    assert (small * 0.5).min() > 0
    with pytest.raises(ValueError, match="shapes"), denormals_as_zero():
        raise ValueError("shapes")
    assert (small * 0.5).min() > 0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # PyTorch's other threads would not follow
    assert program({"small": small}).min() > 0


FAULTS = """
import ctypes, resource, sys
from qohort.cohort.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for turn in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(20 << 20) for _ in range(5)]
    for block in blocks:
        ctypes.memset(block, 1, 20 << 20)
    for block in blocks[::-1]:
        libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_freed_memory_is_kept_for_the_next_tensors():
    faults = {}
    for how in ("kept", "left"):
        settings_of_malloc = ("MALLOC_", "GLIBC_TUNABLES")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(settings_of_malloc)}
        run = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, env=clean)
        faults[how] = int(run.stdout)
    assert faults["kept"] < 10 < faults["left"]


@pytest.mark.parametrize("mode", COMPILE_MODES)
def test_programs_write_to_their_state_once_a_call_and_agree(mode):
    """A decaying sum of matrix products, for inputs of other values and of the same shapes."""

    def member(state, inputs):
        total = 0.9 * state["total"] + (inputs["x"] @ state["weight"]).relu()
        return {"total": total}, (total.sum(), state["same"] * inputs["y"])

    def step(state, inputs):
        new, results = vmap(member)(state, inputs)
        state["total"].copy_(new["total"])
        return {"results": results}

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, 5, generator=generator)
    state = {"total": torch.zeros(3, 2, 5), "weight": weight, "same": weight}
    expected = torch.zeros(3, 2, 5, dtype=torch.float64)
    program = Compiler(mode).program("it", step, state)
    for _ in range(3):
        inputs = {"x": torch.randn(3, 2, 4, generator=generator), "y": torch.randn(3, 4, 5, generator=generator)}
        given_inputs = {key: value.clone() for key, value in inputs.items()}
        total, product = program(inputs)["results"]
        expected = 0.9 * expected + (inputs["x"].double() @ weight.double()).relu()
        torch.testing.assert_close(state["total"].double(), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(total.double(), expected.sum((1, 2)), rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(product, weight * inputs["y"], rtol=1e-6, atol=1e-6)
        assert all(torch.equal(inputs[key], given_inputs[key]) for key in inputs)


def test_results_of_a_program_are_not_overwritten_by_its_next_call():
    cohort = CohortNetwork(build, [1, 2])
    values = Lifted(Compiler("fx"), "it", forward_of(cohort), cohort)
    first = values({"observation": torch.ones(2, 5, 4)})
    kept = first.clone()
    values({"observation": torch.zeros(2, 5, 4)})
    assert torch.equal(first, kept)


@pytest.mark.parametrize("mode", COMPILE_MODES)
def test_results_that_are_inputs_are_not_overwritten_either(mode):
    program = Compiler(mode).program("it", lambda state, x: {"same": x, "part": x[:, 1:], "sum": x + state}, ONES)
    first = program(ONES * 3)
    program(ONES * 5)
    assert [one.unique().tolist() for one in first.values()] == [[3], [3], [4]]


def test_a_call_from_cpp_keeps_no_results_and_repeats_any_result() -> None:
    def step(state, x):
        total = x + state
        return total, total, total.detach(), x.view(2, 12)

    program = Compiler("inductor").program("it", step, ONES)
    for value in (3, 5):
        found = program(ONES * value)
        assert [one.unique().tolist() for one in found] == [[value + 1]] * 3 + [[value]]
    kept = weakref.ref(found[0].untyped_storage())
    del found
    assert kept() is None


def test_threads_take_turns_to_call_a_program_from_cpp() -> None:
    program = Compiler("inductor").program("it", lambda state, x: (x + state, x * state), ONES)
    program(ONES)
    with ThreadPoolExecutor(4) as pool:
        for value, found in enumerate(pool.map(program, [ONES * value for value in range(500)])):
            assert [one.unique().tolist() for one in found] == [[value + 1], [value]]


def test_inputs_of_a_program_may_require_gradients() -> None:
    program = Compiler("inductor").program("it", lambda state, x: (x[:, 1:], x * state), ONES)
    inputs = ONES.clone().requires_grad_()
    for _ in range(3):
        found = program(inputs)
        assert not any(one.requires_grad for one in found)


def test_large_inputs_of_a_program_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qohort.cohort.program.COPIED_BYTES", ONES.nbytes)
    played = []
    monkeypatch.setattr(NativeCall, "play_all", staticmethod(lambda calls: played.extend(calls)))
    larger = torch.ones(2, 3, 5)
    program = Compiler("inductor").program("it", lambda state, x: x * state, larger)
    assert program(larger * 2).unique().tolist() == [2]
    assert not played


def test_what_cannot_be_called_from_cpp_is_called_from_python_and_said(monkeypatch, capsys) -> None:
    def fail(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("qohort.cohort.compiler.compile_native", fail)
    program = Compiler("inductor").program("sums", lambda state, x: x + state, ONES)
    assert program(ONES).unique().tolist() == [2]
    assert capsys.readouterr().err == "qohort: sums cannot be called from C++ (no such kernel): it is slower\n"


def test_a_program_that_writes_to_its_inputs_does_so_where_it_cannot_be_played_from_a_tape(monkeypatch, capsys) -> None:
    def step(state, inputs):
        inputs["written"].copy_(inputs["read"] + state)
        return inputs["read"].sum(-1)

    compile_native = qohort.cohort.compiler.compile_native

    def only_called(flat, on_tape):
        if on_tape:
            raise RuntimeError("no tapes here")
        return compile_native(flat, on_tape)

    monkeypatch.setattr(qohort.cohort.compiler, "compile_native", only_called)
    inputs = {"read": ONES * 3, "written": torch.zeros(2, 3, 4)}
    call = Compiler("inductor").program("it", step, ONES).bind(inputs)
    call.play_all([call])
    assert call.results().tolist() == [[12] * 3] * 2
    assert inputs["written"].unique().tolist() == [4]
    assert "it cannot be played from a tape (no tapes here)" in capsys.readouterr().err


def test_lifted_takes_several_shapes_and_sees_the_parameters_change():
    cohort = CohortNetwork(build, [1, 2])
    values = Lifted(Compiler("fx"), "it", forward_of(cohort), cohort)
    for _ in range(2):
        for rows in (1, 3):
            observation = torch.randn(2, rows, 4, generator=torch.Generator().manual_seed(rows))
            torch.testing.assert_close(values({"observation": observation}), cohort(observation), rtol=1e-6, atol=1e-6)
        with torch.no_grad():
            for parameter in cohort.parameters():
                parameter.mul_(-2)


def test_a_network_that_cannot_be_compiled_for_any_m_runs_as_fx(capsys):
    def normalised():
        return nn.Sequential(nn.Linear(4, 7), nn.GroupNorm(1, 7), nn.ReLU(), nn.Linear(7, 3))

    cohort = CohortNetwork(normalised, [1, 2, 3])
    values = Lifted(Compiler("inductor"), "it", forward_of(cohort), cohort)
    observation = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    out = values({"observation": observation})
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "compile=inductor" in err
    assert "it runs as fx" in err
    for m in range(3):
        network = normalised()
        network.load_state_dict({name: value[m] for name, value in cohort.parameters_by_name().items()})
        torch.testing.assert_close(out[m], network(observation[m]), rtol=1e-6, atol=1e-6)


def test_per_member():
    assert torch.equal(per_member([0.9, 0.5]), torch.tensor([0.9, 0.5], dtype=torch.float32))


SHARED = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
SCALARS = SHARED | st.integers(-9, 9).map(torch.tensor)
KEYS = st.text(max_size=4).filter(lambda key: key != "members")


@st.composite
def states_of(draw, members):
    """Any state of a cohort: tensors [M, ...], lists under `members`, and what is shared, in any nesting."""
    tensors = st.lists(st.integers(0, 3), max_size=2).map(lambda shape: torch.rand(members, *shape))
    leaves = SCALARS | tensors | st.just([]) | st.just({})
    under_members = st.lists(st.dictionaries(KEYS, SHARED, max_size=2) | SHARED, min_size=members, max_size=members)
    inner = st.recursive(
        leaves | st.fixed_dictionaries({"members": under_members}),
        lambda one: st.lists(one, max_size=3) | st.dictionaries(KEYS, one, max_size=3) | st.tuples(one, one),
        max_leaves=6,
    )
    return draw(st.dictionaries(KEYS, inner, max_size=4))


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@settings(deadline=None, max_examples=100)
@given(st.data(), st.integers(1, 4))
def test_merging_undoes_splitting(data, members):
    state = data.draw(states_of(members))
    parts = [split_state(state, m) for m in range(members)]
    assert same(merge_states(parts), state)
    for part in parts:  # a part is the state of a cohort of one
        assert same(split_state(part, 0), part)


def test_split_state_by_hand():
    state = {"a": torch.arange(6).view(3, 2), "n": 4, "s": {"members": ["x", "y", "z"], "cursor": 1}}
    part = split_state(state, 1)
    assert same(part, {"a": torch.tensor([[2, 3]]), "n": 4, "s": {"members": ["y"], "cursor": 1}})
    part["a"].zero_()
    assert state["a"][1].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("first", "second"),
    [(3, 4), ("a", "b"), (torch.tensor(1), torch.tensor(2)), ([1, 2], [1, 3]), ([1], [1, 2]), (None, 0)],
)
def test_members_that_do_not_agree_on_what_they_share_cannot_be_merged(first, second):
    with pytest.raises(ValueError):  # noqa: PT011 - each says it in its own words
        merge_states([{"shared": first}, {"shared": second}])


@pytest.mark.parametrize("mode", ["fx", "inductor"])
def test_the_gradient_of_torchs_layer_norm_is_the_same_in_every_mode(mode: str) -> None:
    cohort = CohortNetwork(lambda: nn.Sequential(nn.Linear(4, 7), nn.LayerNorm(7), nn.Linear(7, 3)), [1, 2])
    gradient = torch.func.grad(lambda parameters, observation: cohort.member_forward(parameters, observation).sum())
    observation = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    plain = Compiler("none").program("it", torch.func.vmap(gradient), cohort.parameters_by_name())(observation)
    unrolled = Compiler(mode).program("it", torch.func.vmap(gradient), cohort.parameters_by_name())(observation)
    for name, expected in plain.items():
        torch.testing.assert_close(unrolled[name], expected)


@pytest.mark.parametrize("how", ["from C++", "in 3 threads", "from Python"])
@pytest.mark.parametrize("cache", [1, 500, 1000])
def test_a_program_that_goes_over_members_in_parts_has_the_same_bits(cache, how, monkeypatch):
    def run(members):
        weight = torch.linspace(-1, 1, members * 35).reshape(members, 5, 7).clone()
        held = {"weight": weight, "count": torch.zeros(members, 1)}

        def step(state, inputs):
            state["weight"].add_(inputs.transpose(1, 2) @ inputs @ state["weight"])
            state["count"].add_(1)
            return state["weight"].sum((1, 2)), state["weight"].tanh()

        program = Compiler("inductor", threads=threads).program("it", step, held, in_parts=True)
        program.from_python = how == "from Python"
        inputs = torch.linspace(0, 3, members * 15).sin().reshape(members, 3, 5)
        return [one.clone() for _ in range(3) for one in program(inputs)], held

    played = []
    play_all = NativeCall.play_all
    monkeypatch.setattr(NativeCall, "play_all", staticmethod(lambda calls: (played.extend(calls), play_all(calls))))
    threads = 3 if how == "in 3 threads" else 1
    whole, whole_held = run(7)  # 7 · 36 · 4 = 1008 bytes of state, less than the cache
    assert {len(call.records) for call in played} <= {1}
    played.clear()
    monkeypatch.setattr("qohort.cohort.native.CACHE_BYTES", cache)
    parts, parts_held = run(7)
    for a, b in zip([*whole, *whole_held.values()], [*parts, *parts_held.values()], strict=True):
        assert torch.equal(a, b)
    assert parts_held["count"].tolist() == [[3]] * 7
    assert [len(call.records) for call in played] == ([] if how == "from Python" else [threads] * 3)


@pytest.mark.parametrize("mode", ["fx", "inductor"])
def test_inputs_of_a_program_keep_their_shapes_and_may_have_any_layout(mode):
    program = Compiler(mode).program("it", lambda state, x: (x * state).sum(-1), torch.ones(2, 3, 4))
    square = torch.arange(24.0).reshape(2, 3, 4)
    expected = program(square)
    assert torch.equal(program(square.transpose(1, 2).contiguous().transpose(1, 2)), expected)
    for other in (torch.ones(2, 3, 3), torch.ones(2, 3, 4, dtype=torch.float64)):
        with pytest.raises(ValueError, match="must keep their shapes and dtypes"):
            program(other)


@pytest.mark.parametrize("mode", ["fx", "inductor"])
def test_a_lifted_function_is_right_for_each_dtype_of_one_shape(mode):
    network = CohortNetwork(lambda: nn.Linear(3, 2), [0, 1])
    lifted = Lifted(
        Compiler(mode), "it", lambda p, inputs: network.member_forward(p, inputs["observation"].float()), network
    )
    observation = torch.arange(24.0).reshape(2, 4, 3)
    expected = network(observation)
    for dtype in (torch.float32, torch.float64, torch.int64):
        torch.testing.assert_close(lifted({"observation": observation.to(dtype)}), expected.detach())


def test_what_inductor_fails_at_runs_as_fx_and_is_said(monkeypatch, capsys):
    def fail(*_):
        raise InductorError(AssertionError("no such symbol"), None)

    monkeypatch.setattr("qohort.cohort.compiler.compile_fx.compile_fx_inner", fail)
    program = Compiler("inductor").program("it", lambda state, x: (x * state).sum(-1), torch.full((2, 3), 2.0))
    assert program(torch.ones(2, 3)).tolist() == [6.0, 6.0]
    assert "no such symbol): it runs as fx" in capsys.readouterr().err


def test_it_is_told_what_is_compiled_unless_it_is_on_the_disk_and_how_long_it_took(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for mode, expected in (("inductor", ["sums", "done"]), ("inductor", ["done"]), ("fx", ["done"])):
        compiler, told = Compiler(mode), []
        compiler.on_start, compiler.on_end = told.append, lambda told=told: told.append("done")
        program = compiler.program("sums", lambda state, inputs: state + inputs, torch.ones(2))
        for _ in range(2):
            assert (program(torch.ones(2)) == 2).all()
        assert told == expected
        assert compiler.seconds > 0
