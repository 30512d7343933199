"""Hydra entry points that report a mistake in one line on stderr, with exit code 2 and no traceback.

The options of groups and all jobs of a sweep are checked before Hydra runs, because Hydra would report mistakes in its
own words or after it has written files. Whatever else Hydra refuses is explained afterwards.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import functools
import gc
import os
import re
import signal
import subprocess
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import qohort
from qohort.cli.arguments import fail
from qohort.cli.jobs import jobs_of
from qohort.cli.streams import lenient_streams
from qohort.config.composition import CONFIG_DIRECTORY, Sources, groups_of, parser_of, without_hydra
from qohort.config.errors import ConfigError, Interrupted, RunsFailed, SweepFailed
from qohort.config.instructions import check_bits_variable
from qohort.config.members import check_config
from qohort.config.mistakes import explain, plain
from qohort.config.overrides import check_choices, parse_override
from qohort.config.paths import check_output, check_writable, expand_paths
from qohort.config.schema import TrainConfig
from qohort.runs.interruption import STOP

FAILED, INTERRUPTED = 1, 75  # 75: EX_TEMPFAIL, "try again", of sysexits.h
PLANNED = ({"run", "dry-run"}, {"multirun", "dry-run"}, {"multirun", "cfg"})
"""The modes that go together, in a script that can print a plan."""
MANY_NAMES = 4
"""A job is named by its overrides if there are at most this many."""
OBJECTS_BETWEEN_COLLECTIONS = 100_000
"""Python looks for garbage after this many new objects, not after 700. Importing libraries and tracing programs make
millions that live on, and going over them again and again took a tenth of the start of a run."""


@functools.cache
def _collect_rarely() -> None:
    """Have Python look for garbage rarely, and not once more when the process ends, which took another second."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    atexit.register(gc.freeze)


def _check_run(config: DictConfig) -> TrainConfig:
    """Check a training run without making its environment, and return the configuration of its first member."""
    first = check_config(config)[0]
    check_output(first)
    return first


def _check_jobs(firsts: Sequence[TrainConfig]) -> None:
    """Check the training jobs of a sweep, including their environments, before the first one starts."""
    from qohort.runs.checking import check_jobs

    check_jobs(firsts)


# The files in conf/hydra/launcher have the names of the plugins' own settings on purpose.
warnings.filterwarnings("ignore", message="(?s).*is validated against ConfigStore schema.*")


CHECKS: Mapping[str, Callable[[Any], Any]] = {"train": _check_run}
"""For a primary configuration, the check that runs before its task imports slow modules."""


JOB_CHECKS: Mapping[str, Callable[[Any], Any]] = {"train": _check_jobs}
"""For a primary configuration, the check of all jobs of a sweep before the first one starts; it gets their `CHECKS`."""


def entry_point(
    config_name: str,
    plan: Callable[[DictConfig], Any] | None = None,
    check: Callable[[DictConfig], Any] | None = None,
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a script's main function from a task that takes the composed configuration.

    Args:
        config_name: The primary configuration, a file in `conf/`.
        plan: Prints what the task would do. It is called instead of the task with the option `--dry-run`, which a
            script without it does not have.
        check: Checks the configuration of a job of a sweep before the first one starts, as the task does when it
            begins; None for the one of `CHECKS`.

    Returns:
        A decorator for the task.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(task)
        @lenient_streams()
        def main() -> None:
            _collect_rarely()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
            warnings.filterwarnings("error", r"provider=[\s\S]* is not available")  # a missing search path
            command = _Command(config_name, task, plan)

            @functools.wraps(task)
            def run(config: DictConfig) -> Any:
                _collect_rarely()  # all of this also in a launcher's worker
                with lenient_streams(), _output(command.process):
                    return command.job(config)

            try:
                launch = hydra.main(version_base="1.3", config_path=str(CONFIG_DIRECTORY), config_name=config_name)
                command.start(launch(run), check)
            except ConfigError as error:
                fail(str(error))
            except KeyboardInterrupt:
                print("qohort: interrupted", file=sys.stderr)
                sys.exit(128 + signal.SIGINT)
            if command.error is not None:
                _end(command.error)

        return main

    return decorate


@dataclass
class _Command:
    """A command that was typed, in its process or in a launcher's worker, which gets a copy.

    Attributes:
        config_name: The primary configuration.
        task: What it does.
        plan: Prints what the task would do.
        process: The id of the command's process.
        dry: Whether `plan` is called instead of the task.
        sweeping: Whether it is a sweep.
        started: Whether a job has started.
        error: The error that ended a job.
    """

    config_name: str
    task: Callable[[DictConfig], Any]
    plan: Callable[[DictConfig], Any] | None
    process: int = field(default_factory=os.getpid)
    dry: bool = False
    sweeping: bool = False
    started: bool = False
    error: Exception | None = None

    def start(self, run: Callable[[], Any], check: Callable[[DictConfig], Any] | None) -> None:
        """Check the command line and start its jobs.

        Args:
            run: Has Hydra compose the configuration of each job and call `job` with it.
            check: See `entry_point`.

        Raises:
            ConfigError: If a check fails, or Hydra refuses the command line.
        """
        check_bits_variable()
        arguments = _read_options(self.plan is not None)
        self.dry = arguments.dry_run
        sources = Sources.of(arguments, self.config_name)
        self.sweeping = arguments.multirun = bool(arguments.multirun) or _says_multirun(arguments, sources)
        if sources and not arguments.shell_completion:
            _check_sweeper(arguments)
            _check_overrides(arguments, sources, self.config_name, check or CHECKS.get(self.config_name, _nothing))
            sys.argv[1:] = _for_hydra(arguments, sources)
        try:
            run()
        except (Interrupted, SweepFailed) as error:
            _end(error)
        except Exception as error:
            if self.started:
                raise
            raise explain(error, arguments.overrides, sources, self.sweeping) from error

    def job(self, config: DictConfig) -> Any:
        """Check the configuration of a job and run the task.

        An error is kept, since Hydra would add a line of its own; the jobs after it do nothing. The sweep of a command
        that has an entry in `CHECKS` reports the errors of its jobs itself.
        """
        if self.error is not None:
            return None
        away = os.getpid() != self.process
        try:
            self.started = True
            if away:  # a launcher's worker may have started in another directory
                os.chdir(HydraConfig.get().runtime.cwd)
            expand_paths(config)
            first = CHECKS.get(self.config_name, _nothing)(config)
            if not away and not self.sweeping:
                use_bits([first])
            return self.plan(config) if self.dry and self.plan is not None else self.task(config)
        except (ConfigError, Interrupted, RunsFailed, HydraException, OmegaConfBaseException) as error:
            if isinstance(error, Interrupted):
                _leave_to_slurm()
            if away or (self.sweeping and self.config_name in CHECKS):
                raise
            self.error = error
            return None


def _output(process: int) -> contextlib.AbstractContextManager[None]:
    """Return where a task prints: in a worker of a sweep that shows its progress, above that.

    Args:
        process: The process of the command.
    """
    if os.getpid() == process:
        return contextlib.nullcontext()
    from qohort.runs.sweep_display import output_for_display

    return output_for_display()


def use_bits(firsts: Sequence[TrainConfig | None]) -> None:
    """Start this command anew if its libraries were loaded for other instructions than its `bits` asks for.

    Raises:
        ConfigError: If the jobs of a sweep differ in `bits`, or the CPU lacks the instructions.
    """
    wanted = {first.bits for first in firsts if isinstance(first, TrainConfig)}
    if len(wanted) > 1:
        raise ConfigError("the jobs of a sweep must have the same bits: start one sweep with each")
    bits = next(iter(wanted), qohort.BITS)
    if bits == qohort.BITS:
        return
    if os.environ.get("QOHORT_BITS", "portable") == bits:
        raise ConfigError(f"bits={bits} needs a CPU with AVX2 and FMA, which this one lacks: use bits=native")
    environment = {name: value for name, value in os.environ.items() if name not in qohort.INSTRUCTIONS}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**environment, "QOHORT_BITS": bits})


def _says_multirun(arguments: Namespace, sources: Sources | None) -> bool:
    """Return whether `hydra.mode=MULTIRUN`, on the command line or in a file, makes a sweep without `-m`."""
    if sources is None or arguments.cfg or arguments.info:
        return False
    files = (file for directory in sources.directories for file in directory.rglob("*.yaml") if file.is_file())
    texts = (*arguments.overrides, *(file.read_text(errors="replace") for file in files))
    if not any("MULTIRUN" in text for text in texts):
        return False  # composing takes longer
    with parser_of(sources):
        try:
            return str(sources.compose(arguments.overrides).hydra.mode) == "RunMode.MULTIRUN"
        except Exception:  # it is reported when the jobs are composed
            return any("MULTIRUN" in text for text in arguments.overrides)


def _nothing(_: Any, /) -> Any:
    """Check nothing."""


def _leave_to_slurm() -> None:
    """Exit an interrupted SLURM job of submitit without a result, since the sweep would take a result for its end.

    If the job's time was up, submitit's own signal handler requeues it. If the job was preempted, SLURM requeues it.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        try:
            STOP.hand_on()
        except subprocess.CalledProcessError as error:
            if error.returncode > 0:
                raise
            # `scontrol requeue` is a process of this job and was itself killed by the requeue.
        sys.exit(INTERRUPTED)


def _end(error: Exception) -> NoReturn:
    """Report the error of a task or a sweep and exit with its exit code."""
    if isinstance(error, SweepFailed | Interrupted | RunsFailed):
        print(f"qohort: {error}", file=sys.stderr)
        sys.exit(INTERRUPTED if isinstance(error, Interrupted) else FAILED)
    fail(str(error) if isinstance(error, ConfigError) else plain(str(error)))


def _read_options(can_plan: bool = False) -> Namespace:
    """Parse the command line's options with Hydra's parser, with a message of one line for what it refuses.

    Args:
        can_plan: Whether there is the option `--dry-run`, and `-m` goes with `--cfg job`.

    Raises:
        ConfigError: If an option is unknown, or options do not go together.
    """
    parser = get_args_parser()
    if can_plan:
        parser.add_argument("--dry-run", action="store_true")
    else:
        parser.set_defaults(dry_run=False)

    def error(message: str) -> NoReturn:
        words = "write settings as key=value; --help lists the options"
        if unknown := re.match(r"unrecognized arguments: (--?([\w./-]+))", message):
            options = [one for one in parser._option_string_actions if one.startswith("--")]
            close = difflib.get_close_matches(unknown[1], options, n=3)
            words = (f"did you mean {' or '.join(close)}? " if close else "") + words
        raise ConfigError(f"{message}; {words}")

    parser.error = error  # type: ignore[method-assign]
    arguments = parser.parse_intermixed_args()
    sys.argv[1:] = _options_first(sys.argv[1:], arguments.overrides)
    names = ("run", "multirun", "cfg", "info", "shell_completion", "dry_run")
    modes = [name.replace("_", "-") for name in names if getattr(arguments, name)]
    planned = can_plan and arguments.cfg in (None, "job") and {*modes} in PLANNED
    if len(modes) > 1 and not planned:
        error(f"--{modes[0]} and --{modes[1]} cannot be used together")
    if arguments.resolve and not (arguments.cfg or arguments.help):
        error("--resolve needs --cfg or --help")
    if arguments.experimental_rerun and not Path(arguments.experimental_rerun).exists():
        error(f"--experimental-rerun {arguments.experimental_rerun}: no such file")
    if arguments.config_path:  # Hydra would take it from the directory of this command
        absolute = str(Path(arguments.config_path).absolute())
        sys.argv[1:] = [_replaced(one, arguments.config_path, absolute) for one in sys.argv[1:]]
        arguments.config_path = absolute
    if arguments.config_dir and not Path(arguments.config_dir).is_dir():
        error(f"--config-dir {arguments.config_dir}: no such directory")
    return arguments


def _check_sweeper(arguments: Namespace) -> None:
    """Check that the sweeper can print a plan, if one is asked for.

    Raises:
        ConfigError: If it cannot.
    """
    planned = arguments.multirun and (arguments.dry_run or arguments.cfg)
    others = [
        text for text in arguments.overrides if text.startswith("hydra/sweeper=") and not text.endswith("=cohort")
    ]
    if planned and others:
        raise ConfigError(f"{'--dry-run' if arguments.dry_run else '--cfg'} and -m need hydra/sweeper=cohort")


def _for_hydra(arguments: Namespace, sources: Sources) -> list[str]:
    """Return the command line that Hydra gets: for a sweep, `--dry-run` and `--cfg job` become a key of the sweeper."""
    if not (arguments.dry_run or arguments.multirun):
        return sys.argv[1:]
    options = ("config_path", "config_name", "config_dir", "package", "experimental_rerun")
    words = [f"--{name.replace('_', '-')}={value}" for name in options if (value := getattr(arguments, name))]
    if not arguments.multirun:
        return [*words, *arguments.overrides, "hydra.output_subdir=null", "hydra.run.dir=."]  # nothing is written
    texts = _as_sweeps(arguments.overrides, sources)
    if arguments.dry_run or arguments.cfg:
        what = "plan" if arguments.dry_run else "resolved" if arguments.resolve else "job"
        texts = [*texts, f"hydra.sweeper.show={what}"]
    return ["--multirun", *words, *texts]


def _as_sweeps(texts: Sequence[str], sources: Sources) -> Sequence[str]:
    """Return the overrides of a sweep, with those that only its jobs have a key for as sweeps over one value.

    Hydra applies the others to the configuration of the sweep itself, in which the options of groups that are swept
    over are not chosen yet.
    """
    with parser_of(sources) as parser:
        overrides = parser.parse_overrides(list(texts))
        plain = [(str(one.input_line), one) for one in overrides if not one.is_sweep_override()]
        try:
            sources.compose([text for text, _ in plain])
            return texts
        except Exception:  # the jobs were composed without it
            compose, groups = sources.composer(), groups_of(sources)
        choices = [text for text, one in plain if one.key_or_group in groups]
        alone = {}
        for text, one in plain:
            if text in choices or one.is_delete():
                continue
            try:
                compose([*choices, text])
            except Exception:
                alone[text] = f"{one.get_key_element()}=choice({one.get_value_element_as_str()})"
    return [alone.get(text, text) for text in texts]


def _options_first(words: Sequence[str], settings: Sequence[str]) -> list[str]:
    """Return the words of a command line with the settings last, as Hydra's own parser wants them."""
    options = list(words)
    for setting in settings:
        options.remove(setting)
    return [*options, *settings]


def _replaced(argument: str, old: str, new: str) -> str:
    """Return an argument with another value if it is the option --config-path or its value."""
    return argument.removesuffix(old) + new if argument in (old, f"--config-path={old}", f"-cp={old}") else argument


def _check_overrides(
    arguments: Namespace, sources: Sources, config_name: str, check: Callable[[DictConfig], Any]
) -> None:
    """Check the command line's overrides before Hydra runs: the options they choose, and all jobs of a sweep.

    Args:
        arguments: The parsed command line.
        sources: The files of the configuration.
        config_name: The primary configuration.
        check: Checks the configuration of a job.

    Raises:
        ConfigError: On the first mistake.
    """
    with parser_of(sources) as parser:
        parse = functools.cache(functools.partial(parse_override, parser))
        overrides = [parse(text) for text in arguments.overrides]
        if arguments.multirun:
            jobs = list(jobs_of(arguments.overrides, parse, sources.searchpath))
            compose: Callable[[Sequence[str]], DictConfig] = sources.composer()
        else:
            check_choices(overrides, sources)
            # With these overrides Hydra writes files before the task can check the configuration.
            writes = any(one.key_or_group in ("hydra.output_subdir", "hydra.run.dir") for one in overrides)
            jobs = [arguments.overrides] if writes and not (arguments.cfg or arguments.info) else []
            compose = sources.compose

        def composed(job: Sequence[str]) -> DictConfig:
            check_choices([parse(text) for text in job], sources)
            try:
                return compose(job)
            except Exception as error:
                raise explain(error, job, sources, arguments.multirun) from error

        configs = _for_each(composed, jobs, jobs, arguments.overrides)
        for key in {one.key_or_group for one in overrides} & {"hydra.run.dir", "hydra.sweep.dir"}:
            _for_each(functools.partial(_check_hydras_directory, key), configs, jobs, arguments.overrides)
        checked = _for_each(lambda config: check(without_hydra(config)), configs, jobs, arguments.overrides)
    use_bits(checked)
    if checked:  # the check of jobs imports torch, which is slow
        JOB_CHECKS.get(config_name, _nothing)(checked)


def _check_hydras_directory(key: str, config: DictConfig) -> None:
    """Check that a directory in which Hydra writes can be made.

    Raises:
        ConfigError: If not.
    """
    with contextlib.suppress(OmegaConfBaseException):  # it refers to what only Hydra knows
        check_writable(key, str(OmegaConf.select(config, key)))


def _for_each(
    function: Callable[[Any], Any], items: Sequence[Any], jobs: Sequence[Sequence[str]], typed: Sequence[str]
) -> list[Any]:
    """Apply a function to what belongs to each job of a sweep. An error of some jobs only names the first of them.

    Args:
        function: The function.
        items: Its arguments, one for each job.
        jobs: The overrides of each job.
        typed: The overrides of the sweep.

    Raises:
        ConfigError: The first error of the function.
    """
    results: list[Any] = []
    errors: list[str | None] = []
    first: ConfigError | None = None
    for item in items:
        try:
            results.append(function(item))
            errors.append(None)
        except ConfigError as error:
            first = first or error
            errors.append(str(error))
    if first is None:
        return results
    number = next(i for i, error in enumerate(errors) if error is not None)
    names = [text for text in jobs[number] if text not in typed and not text.startswith("seed=")]
    if len(names) > MANY_NAMES:  # a job of an ablation
        names = [text for text in names if text.startswith(("arm=", "env="))]
    if not names or {*errors} == {errors[number]}:
        raise first
    raise ConfigError(f"{first} (in the job {' '.join(names)})") from first
