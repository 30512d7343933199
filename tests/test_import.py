"""What importing the package does: it fixes MKL's arithmetic, and says so where it cannot."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="MKL is on x86 only")


def imported(first: str, setting: str | None) -> tuple[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "MKL_CBWR"}
    environment |= {} if setting is None else {"MKL_CBWR": setting}
    code = f"import sys, types, os\n{first}\nimport qohort\nprint(os.environ['MKL_CBWR'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    ("first", "setting", "set_to", "said"),
    [
        ("", None, ("AVX2,STRICT", "AVX512,STRICT"), ""),
        ("", "AVX2,STRICT", ("AVX2,STRICT",), ""),
        ("", "AUTO", ("AUTO",), "MKL_CBWR=AUTO lacks ,STRICT"),
        ("sys.modules['torch'] = types", None, ("AVX2,STRICT", "AVX512,STRICT"), "torch was imported before qohort"),
    ],
)
def test_arithmetic_is_fixed_or_a_warning_given(
    first: str, setting: str | None, set_to: tuple[str, ...], said: str
) -> None:
    value, told = imported(first, setting)
    assert value in set_to
    assert said in told
    assert bool(told) == bool(said)
