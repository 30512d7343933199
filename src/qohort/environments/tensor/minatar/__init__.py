"""The five games of MinAtar (Young & Tian, 2019) as tensor environments.

- `base.py`: what the games share: actions, sticky actions and images.
- `asterix.py`, `breakout.py`, `freeway.py`, `seaquest.py`, `space_invaders.py`: the games.
"""
