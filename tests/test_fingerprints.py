"""Recorded fingerprints: no refactoring changes the bits of what was published before."""

import platform
from pathlib import Path

import pytest

import fingerprints

CONTENT = fingerprints.load()


def has_avx2() -> bool:
    try:
        return " avx2 " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def test_every_command_has_a_fingerprint_and_the_list_covers_every_agent():
    assert set(CONTENT["commands"]) == set(CONTENT["recorded"])
    used = " ".join(" ".join(entry["overrides"]) for entry in CONTENT["commands"].values())
    for file in (fingerprints.ROOT / "conf" / "agent").glob("*.yaml"):
        assert f"agent={file.stem}" in used, file.stem


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not has_avx2(), reason="recorded on x86 with AVX2: other bits here"
)
@pytest.mark.parametrize("name", CONTENT["commands"])
def test_a_command_ends_with_its_recorded_fingerprint(name: str) -> None:
    assert fingerprints.run(name, CONTENT) == CONTENT["recorded"][name]
