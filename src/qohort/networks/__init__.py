"""Q-networks, written as ordinary modules of one member.

The files in reading order:

- `layers.py`: what a network must provide, and the layers that the networks share.
- `vectors.py`: table, linear and MLP networks for vectors and discrete observations.
- `images.py`: convolutional networks and IMPALA's residual network for images.
- `parts.py`: a network for observations of several parts, images and vectors side by side.
- `packing.py`: how such observations, and action masks, are packed into one row of bytes.
"""

from qohort.networks.images import ConvNetwork, ImpalaNetwork
from qohort.networks.layers import QNetwork
from qohort.networks.parts import MultiInputNetwork
from qohort.networks.vectors import MLP, LinearNetwork, TableNetwork

__all__ = ["MLP", "ConvNetwork", "ImpalaNetwork", "LinearNetwork", "MultiInputNetwork", "QNetwork", "TableNetwork"]
