"""The colours, widths and settings that all figures share."""

from __future__ import annotations

from typing import Any

PALETTE = ("#0072b2", "#d55e00", "#cc79a7", "#e69f00", "#56b4e9", "#117733", "#332288", "#ee99aa", "#000000")
"""Colours of arms that colour-blind readers can tell apart, of the palettes of Okabe and Ito and of Tol. They are
repeated with other dashes if there are more arms."""
BASELINE = "#4d4d4d"
"""The colour of the baseline, which is dashed in every figure."""
DASHES = ("solid", (0, (5, 1.2)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
BASELINE_DASHES = (0, (3.2, 1.4))
GREY = "#595959"
WIDE, NARROW = 7.0, 3.7
"""Widths of figures in inches: the usual one, and that for narrow screens."""
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "pdf.fonttype": 42,
    "svg.hashsalt": "qohort",
}
