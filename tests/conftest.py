import logging
import os
from collections.abc import Iterator

import qohort  # before torch: it fixes MKL's arithmetic

import pytest  # isort: skip
import torch  # isort: skip

from qohort.cli.streams import _Lenient

assert qohort.__version__
torch.set_num_threads(1)
# Every run of every test traces its programs, and fails if it would have found another one on the disk.
os.environ.setdefault("QOHORT_PROGRAMS", "checked")


@pytest.fixture(autouse=True)
def closed_streams() -> Iterator[None]:
    """Forget the streams that commands in the test's process gave to logging: they are closed with the test."""
    yield
    for handler in logging.root.handlers[:]:
        if isinstance(handler, logging.StreamHandler) and isinstance(handler.stream, _Lenient):
            logging.root.removeHandler(handler)
