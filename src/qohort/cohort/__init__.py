"""Cohorts: everything that depends on the number of members M, and all bitwise-reproducible machinery.

The files in reading order:

- `stacking.py`: `CohortNetwork` stacks the networks of all members into one module.
- `program.py`: `Program` and `Compiler` compile functions that are lifted over members.
- `compiler.py`: the private interfaces of PyTorch's compiler.
- `streams.py`: the random streams of each member.
- `noise.py`: the random numbers for noisy networks and implicit quantiles.
- `schedules.py`: the progress of a cohort, schedules and intervals.
- `held.py`: hyperparameters that differ between members.
- `state.py`: saving state, and splitting and merging it by member.
"""

from qohort.cohort.program import Compiler, Program
from qohort.cohort.stacking import CohortNetwork

__all__ = ["CohortNetwork", "Compiler", "Program"]
