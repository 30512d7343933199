"""What importing the package does: it fixes MKL's arithmetic, and says so where it cannot."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import hydra
import pytest

import qohort
from qohort.config.composition import CONFIG_DIRECTORY

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="MKL is on x86 only")


def imported(first: str, setting: str | None) -> tuple[str, str]:
    environment = {key: value for key, value in os.environ.items() if key not in {"QOHORT_BITS", *qohort.PORTABLE}}
    environment |= {} if setting is None else {"MKL_CBWR": setting}
    code = f"import sys, types, os\n{first}\nimport qohort\nprint(os.environ['MKL_CBWR'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    ("first", "setting", "set_to", "said"),
    [
        ("", None, ("AVX2,STRICT",), ""),
        ("os.environ['QOHORT_BITS'] = 'native'", None, ("AVX2,STRICT", "AVX512,STRICT"), ""),
        ("os.environ['NUMBA_CPU_NAME'] = 'znver3'", None, ("AVX2,STRICT",), "NUMBA_CPU_NAME=znver3 is set"),
        ("", "AVX2,STRICT", ("AVX2,STRICT",), ""),
        ("", "AUTO", ("AUTO",), "MKL_CBWR=AUTO lacks ,STRICT"),
        ("sys.modules['torch'] = types", None, ("AVX2,STRICT",), "torch was imported before qohort"),
    ],
)
def test_arithmetic_is_fixed_or_a_warning_given(
    first: str, setting: str | None, set_to: tuple[str, ...], said: str
) -> None:
    value, told = imported(first, setting)
    assert value in set_to
    assert said in told
    assert bool(told) == bool(said)


@pytest.mark.slow
@pytest.mark.matrix
def test_a_command_starts_itself_anew_for_other_bits(tmp_path: Path) -> None:
    small = (
        "seed=3",
        "budget=200",
        "learning_starts=100",
        "batch_size=16",
        "compile=none",
        "logger=none",
        f"output_dir={tmp_path}",
    )
    command = [sys.executable, str(Path(__file__).parents[1] / "scripts" / "train.py")]
    for bits in ("native", "portable"):
        done = subprocess.run([*command, *small, f"bits={bits}", "overwrite=true"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (manifest,) = (json.loads(file.read_text()) for file in tmp_path.rglob("manifest.json"))
        assert manifest["bits"] == bits
        assert manifest["command"] == ["train.py", *small, f"bits={bits}", "overwrite=true"]
    done = subprocess.run([*command, "-m", *small, "bits=native,portable"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "qohort: the jobs of a sweep must have the same bits: start one sweep with each\n",
    )


def test_a_process_with_other_bits_says_how_to_start_it() -> None:
    from qohort.config.errors import ConfigError
    from qohort.runs.preparing import prepare

    with hydra.initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        config = hydra.compose("train", [f"bits={'native' if qohort.BITS == 'portable' else 'portable'}"])
    with pytest.raises(ConfigError, match="set the environment variable QOHORT_BITS="):
        prepare(config)


def test_lists_of_runs_do_not_import_what_takes_seconds() -> None:
    code = "import sys, qohort.cli.runs, qohort.cli.diff, qohort.cli.rm\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "gymnasium", "pytorch_lightning", "scipy", "matplotlib"} & {*done.stdout.split()}
