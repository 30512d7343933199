"""Videos of evaluation episodes while training, at the env_steps that `evaluation.video_at` names."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Any, cast

import pytorch_lightning as pl

from qohort.agent.callbacks import CohortCallback, Learner
from qohort.agent.evaluation import EpisodeScores, EvaluationStopped
from qohort.agent.q_values import QValues
from qohort.cohort.program import Compiler
from qohort.config.members import evaluation_environment
from qohort.environments.checked import in_words
from qohort.networks.packing import masks_of
from qohort.runs.evaluating import FilmedEvaluator
from qohort.runs.interruption import STOP
from qohort.runs.members import Member
from qohort.runs.metrics import CohortRecorder, video_file
from qohort.runs.video import has_ffmpeg


class EvaluationVideos(CohortCallback):
    """Films one more episode of each member at the first evaluation at or after each of some env_steps.

    The episode has the seed of the evaluation's first one. It is played in Gymnasium's environment, and it changes
    nothing in the run: a video that cannot be made is reported in a line, and training goes on.

    Args:
        members: The members.
        recorder: Hands the videos on to the loggers.
    """

    def __init__(self, members: Sequence[Member], recorder: CohortRecorder) -> None:
        self._members, self._recorder = members, recorder
        self._at = members[0].config.evaluation.video_at
        self._last = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue after the last evaluation."""
        self._last = cast(Any, pl_module).evaluated_at

    def on_evaluation_end(self, trainer: pl.Trainer, module: Learner, scores: EpisodeScores) -> None:
        """Film an episode of each member if this is due."""
        now = module.progress.env_steps
        due = any(self._last < at <= now for at in self._at)
        self._last = now
        if not due:
            return
        try:
            self._film(module, now)
        except EvaluationStopped:
            pass
        except Exception as error:
            print(f"qohort: no video of the evaluation at {now:,} env_steps: {in_words(error)}", file=sys.stderr)

    def _film(self, module: Any, now: int) -> None:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame needs no screen to render frames
        suffix = ".mp4" if has_ffmpeg() else ".gif"
        files = [video_file(member.directory.path, now).with_suffix(suffix) for member in self._members]
        partial = [
            None if m in module.failed else file.with_name(f".partial-{file.name}") for m, file in enumerate(files)
        ]
        for file in files:
            file.parent.mkdir(exist_ok=True)
        config = module.config
        settings = dataclasses.replace(config.evaluation, episodes=1)
        masks = masks_of(module.actor.space)
        allowed = None if masks is None else masks.allowed
        values = module.actor.preprocessing.before(QValues(module.online, module.head, Compiler("none"), allowed))
        arguments: Any = (evaluation_environment(config), settings, module.seeds, module.device, partial)
        try:
            with closing(FilmedEvaluator(*arguments)) as evaluator:
                scores = evaluator(values, now, module.failed, lambda: STOP.signal)
            for m, (part, file) in enumerate(zip(partial, files, strict=True)):
                if part is not None and m not in scores.failures:
                    part.replace(file)
                    self._recorder.logs[m].video(file)
        finally:
            for part in partial:
                if part is not None:
                    part.unlink(missing_ok=True)
