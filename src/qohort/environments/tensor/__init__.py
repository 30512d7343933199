"""Tensor environments: environments as functions of tensors, compiled together with acting and replay.

- `base.py`: what a tensor environment is, its random numbers, and sine and cosine with the same bits everywhere.
- `classic_control.py`: CartPole, Acrobot and MountainCar.
- `toy_text.py`: FrozenLake and CliffWalking.
- `minatar/`: the five games of MinAtar.
"""
