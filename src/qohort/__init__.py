"""Qohort: Deep Q-Networks trained in cohorts, with Lightning, Hydra, Gymnasium and Weights & Biases.

Importing the package fixes MKL's arithmetic before torch loads it: without it a member's matrix products
could differ in their last bit with the alignment of its slice of a stacked tensor, and so with its neighbours.
"""

import os

os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

__version__ = "0.1.0"
