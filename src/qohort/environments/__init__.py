"""Environments: creates, steps, seeds and restores them, and preprocesses observations and rewards.

The files in reading order:

- `making.py`: creates one environment from its configuration and checks its spaces.
- `vector.py`: `EpisodicVectorEnv` steps all environments of a cohort and restores them exactly.
- `preprocessing.py`: reward scaling and clipping, and normalisation of observations and rewards.
- `episodes.py`: returns and lengths of the training episodes.
- `minatar.py`: registers the MinAtar games with Gymnasium.
"""
