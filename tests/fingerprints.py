"""The fingerprints of a list of commands, as they were recorded: the guard of every refactoring.

    python tests/fingerprints.py [PATTERN]             run the commands whose names match, and compare
    python tests/fingerprints.py --record [PATTERN]    record their fingerprints instead
    python tests/fingerprints.py --source DIR ...      run the code of another checkout
    python tests/fingerprints.py --emulate portable    run them on an emulated Haswell (Debian's qemu-user)

The commands whose names begin with `portable` are meant to end with the same bits on any x86-64 machine with AVX2; the
manual says where they were seen to. The others are not compiled: MKL has kernels of its own for them on each make of
CPU, so they are compared on AMD's only. Elsewhere,
record them with `--source` on a checkout of the commit to compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = Path(__file__).with_name("fingerprints.yaml")
EMULATOR = ["qemu-x86_64", "-cpu", "Haswell"]
PORTABLE = "portable"


def load() -> dict[str, Any]:
    """The content of `fingerprints.yaml`."""
    content: dict[str, Any] = yaml.safe_load(COMMANDS.read_text())
    return content


def overrides_of(entry: dict[str, Any], content: dict[str, Any]) -> list[str]:
    """The command line of an entry, without the output directory."""
    settings = [one for name in ("common", *entry.get("settings", ["mlp"])) for one in content["settings"][name]]
    return [*entry.get("options", []), *settings, *entry["overrides"]]


def comparable(name: str) -> bool:
    """Whether this machine computes the bits that were recorded for a command."""
    try:
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return " avx2 " in cpu and (name.startswith(PORTABLE) or "AuthenticAMD" in cpu)


def run(name: str, content: dict[str, Any], source: Path = ROOT, emulate: bool = False) -> list[str]:
    """Run one entry in a directory of its own; the fingerprints of its runs, by seed."""
    entry = content["commands"][name]
    with tempfile.TemporaryDirectory() as directory:
        command = [
            *(EMULATOR if emulate else []),
            sys.executable,
            str(source / "scripts" / "train.py"),
            *overrides_of(entry, content),
        ]
        command += [f"output_dir={directory}/outputs"]
        environment = {**os.environ, "PYTHONPATH": str(source / "src"), "WANDB_MODE": "offline"}
        if entry.get("killed"):
            _kill_at_a_checkpoint(command, environment, Path(directory))
        done = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
        results = [json.loads(file.read_text()) for file in Path(directory).glob("outputs/**/result.json")]
    return sorted(f"{result['seed']}: {result['fingerprint']}" for result in results)


def _kill_at_a_checkpoint(command: list[str], environment: dict[str, str], directory: Path) -> None:
    """Start a command and end it by SIGKILL once it has written a checkpoint."""
    with subprocess.Popen(command, env=environment, cwd=directory, stdout=subprocess.DEVNULL) as process:
        while not list(directory.glob("outputs/**/step-*.ckpt")):
            assert process.poll() is None, "it ended before it wrote a checkpoint"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not list(directory.glob("outputs/**/result.json")), "it was finished before it was killed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="", help="a regular expression; all commands without one")
    parser.add_argument("--record", action="store_true", help="write the fingerprints to fingerprints.yaml")
    parser.add_argument("--source", type=Path, default=ROOT, help="the checkout whose code runs")
    parser.add_argument("--emulate", action="store_true", help="on an emulated Haswell, 20 times slower")
    parser.add_argument("--workers", type=int, default=2, help="commands that run at a time")
    options = parser.parse_args()
    content = load()
    names = [name for name in content["commands"] if re.search(options.pattern, name)]
    wrong = 0
    with ThreadPoolExecutor(options.workers) as pool:
        found = {name: pool.submit(run, name, content, options.source.resolve(), options.emulate) for name in names}
        for name, future in found.items():
            try:
                fingerprints = future.result()
            except (RuntimeError, AssertionError) as error:
                print(f"{name}: {error}", flush=True)
                wrong += 1
                continue
            if options.record:
                content["recorded"] = {**(content.get("recorded") or {}), name: fingerprints}
                _write(content["recorded"])
            elif fingerprints != (content.get("recorded") or {}).get(name):
                wrong += 1
                print(f"{name}: differs", flush=True)
                continue
            print(f"{name}: {'recorded' if options.record else 'equal'}", flush=True)
    print(f"{len(names) - wrong} of {len(names)} {'recorded' if options.record else 'equal'}")
    return int(wrong > 0)


def _write(recorded: dict[str, list[str]]) -> None:
    """Replace the recorded fingerprints at the end of the file, and leave the list as it is written."""
    text = COMMANDS.read_text()
    head = text[: text.index("\nrecorded:")] if "\nrecorded:" in text else text.rstrip("\n")
    lines = [f"  {name}:\n" + "".join(f"    - '{one}'\n" for one in recorded[name]) for name in sorted(recorded)]
    COMMANDS.write_text(f"{head}\nrecorded:\n{''.join(lines)}")


if __name__ == "__main__":
    sys.exit(main())
