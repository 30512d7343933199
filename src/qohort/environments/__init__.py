"""Environments: creates, steps, seeds and restores them, and preprocesses observations and rewards.

The files in reading order:

- `frames.py`: stacks the newest frames into one observation.
- `making.py`: creates one environment from its configuration and checks its spaces.
- `observations.py`: Whether an observation fits its space.
- `checked.py`: `CheckedEnv` steps one environment and checks what it returns.
- `contract.py`: checks before a run that an environment keeps its contract.
- `vector.py`: `EpisodicVectorEnv` steps all environments of a cohort and restores them exactly.
- `workers.py`: `WorkerVectorEnv` does this in several processes.
- `tensor/`: environments as functions of tensors, which are compiled with the agent.
- `preprocessing.py`: reward scaling and clipping, and normalisation of observations and rewards.
- `episodes.py`: returns and lengths of the training episodes.
- `minatar.py`: registers the MinAtar games with Gymnasium.
"""

from qohort.environments.contract import check_contract
from qohort.environments.making import make_environment
from qohort.environments.vector import EpisodicVectorEnv, episode_seeds

__all__ = ["EpisodicVectorEnv", "check_contract", "episode_seeds", "make_environment"]
