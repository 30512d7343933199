"""The five games of MinAtar (Young & Tian, 2019) as tensor environments.

- `base.py`: what the games share: actions, sticky actions and images.
- `asterix.py`, `breakout.py`, `freeway.py`, `seaquest.py`, `space_invaders.py`: the games.
"""

from __future__ import annotations

from qohort.environments.tensor.minatar.asterix import Asterix
from qohort.environments.tensor.minatar.base import MinAtarGame
from qohort.environments.tensor.minatar.breakout import Breakout
from qohort.environments.tensor.minatar.freeway import Freeway
from qohort.environments.tensor.minatar.seaquest import Seaquest
from qohort.environments.tensor.minatar.space_invaders import SpaceInvaders

GAMES: dict[str, type[MinAtarGame]] = {
    "asterix": Asterix,
    "breakout": Breakout,
    "freeway": Freeway,
    "seaquest": Seaquest,
    "space_invaders": SpaceInvaders,
}
"""The games by MinAtar's names."""
