"""Recorded fingerprints: no refactoring changes the bits of what was published before."""

import shutil

import pytest

import fingerprints
from matrix import MARKS

CONTENT = fingerprints.load()
FAST, IN_CI = "portable_eager", "portable_lambda"  # uncompiled and compiled


def test_every_command_has_a_fingerprint_and_the_list_covers_every_agent():
    assert set(CONTENT["commands"]) == set(CONTENT["recorded"])
    used = " ".join(" ".join(entry["overrides"]) for entry in CONTENT["commands"].values())
    for file in (fingerprints.ROOT / "conf" / "agent").glob("*.yaml"):
        assert f"agent={file.stem}" in used, file.stem


def marks(name: str) -> tuple[pytest.MarkDecorator, ...]:
    if name == FAST:
        return ()
    return MARKS if name == IN_CI else (pytest.mark.slow,)


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in CONTENT["commands"]])
def test_a_command_ends_with_its_recorded_fingerprint(name: str) -> None:
    if not fingerprints.comparable(name):
        pytest.skip("other bits on this CPU")
    assert fingerprints.run(name, CONTENT) == CONTENT["recorded"][name]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(fingerprints.EMULATOR[0]) is None, reason="needs Debian's qemu-user")
@pytest.mark.parametrize("name", [name for name in CONTENT["commands"] if name.startswith(fingerprints.PORTABLE)])
def test_another_cpu_ends_with_the_same_fingerprint(name: str) -> None:
    assert fingerprints.run(name, CONTENT, emulate=True) == CONTENT["recorded"][name]
