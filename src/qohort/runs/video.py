"""Records videos of an environment, and puts videos side by side."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray


class FrameWriter(Protocol):
    """Writes the frames of a video, as imageio's writers do."""

    def append_data(self, im: NDArray[np.uint8]) -> None:
        """Write the next frame, `[height, width, 3]`."""

    def close(self) -> None:
        """Finish the video."""


class FrameRecorder(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that writes one frame per state of an environment to a video.

    Args:
        env: An environment with `render_mode="rgb_array"`.
        writer: Writes the frames.
    """

    def __init__(self, env: gym.Env[Any, Any], writer: FrameWriter) -> None:
        super().__init__(env)
        self._writer = writer

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and write the first frame."""
        outcome = self.env.reset(seed=seed, options=options)
        self._writer.append_data(self.env.render())  # type: ignore[arg-type]
        return outcome

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step and write a frame."""
        outcome = self.env.step(action)
        self._writer.append_data(self.env.render())  # type: ignore[arg-type]
        return outcome


def open_writer(path: Path, fps: float) -> FrameWriter:
    """Open a video file for writing.

    Args:
        path: An `.mp4` file, which needs ffmpeg, or a `.gif` file.
        fps: Frames per second.
    """
    import imageio.v2 as imageio

    writer: FrameWriter
    if path.suffix == ".gif":
        writer = imageio.get_writer(path, mode="I", duration=1000 / fps, loop=0)
    else:
        # H.264 needs even sides. imageio's default of 16, for old players, would rescale the picture.
        writer = imageio.get_writer(path, fps=fps, macro_block_size=2, ffmpeg_log_level="error")
    return writer


WIDEST = 1920
"""The width of a grid of videos, in pixels. Larger ones are sampled at every second pixel, third pixel and so on."""


def tile_videos(videos: Sequence[Path], path: Path) -> None:
    """Put videos of one size side by side, in rows. The last frame of a video that has ended stays, darkened.

    Args:
        videos: The videos.
        path: The new video, `.mp4` or `.gif`, as those.
    """
    import imageio.v2 as imageio

    with contextlib.ExitStack() as opened:
        readers: list[Any] = [opened.enter_context(imageio.get_reader(video)) for video in videos]
        about = readers[0].get_meta_data()
        fps = about["fps"] if "fps" in about else 1000 / about["duration"]
        frames = [reader.iter_data() for reader in readers]
        shown = [np.asarray(next(one))[..., :3] for one in frames]
        columns = math.ceil(math.sqrt(len(videos)))
        step = math.ceil(columns * shown[0].shape[1] / WIDEST)
        writer = open_writer(path, fps)
        opened.callback(writer.close)
        running = set(range(len(videos)))
        while running:
            writer.append_data(_tiled([picture[::step, ::step] for picture in shown], columns))
            for number in sorted(running):
                following = next(frames[number], None)
                if following is None:
                    running.discard(number)
                    shown[number] = shown[number] // 3
                else:
                    shown[number] = np.asarray(following)[..., :3]


def _tiled(pictures: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Return pictures `[height, width, 3]` of one size as one picture, row by row; missing ones are black."""
    height, width, _ = pictures[0].shape
    rows = -(-len(pictures) // columns)
    grid = np.zeros((rows * height, columns * width, 3), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        grid[row * height : (row + 1) * height, column * width : (column + 1) * width] = picture
    return grid


def has_ffmpeg() -> bool:
    """Return whether imageio finds a working ffmpeg."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_version()
    except (ImportError, RuntimeError, OSError):
        return False
    return True
