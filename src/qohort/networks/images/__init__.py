"""Q-networks for images: plain convolutions (the networks of MinAtar and Nature), IMPALA's and the Hadamax encoder."""

from qohort.networks.images.convolutional import ConvNetwork, Convolutions, ConvTorso, SparseConvNetwork
from qohort.networks.images.hadamax import HadamaxNetwork
from qohort.networks.images.impala import ImpalaNetwork
from qohort.networks.images.layers import Pixels

__all__ = [
    "ConvNetwork",
    "ConvTorso",
    "Convolutions",
    "HadamaxNetwork",
    "ImpalaNetwork",
    "Pixels",
    "SparseConvNetwork",
]
