"""The specification: every op as slow float64 NumPy.

Each implementation (C++, Triton, torch) is tested against these. They are written to be read, not
to be fast, and they check nothing: `pyids.ops` validates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

# ---- pooling -------------------------------------------------------------------------------------


# ---- k-means -------------------------------------------------------------------------------------


# ---- loss ----------------------------------------------------------------------------------------


# ---- sampling ------------------------------------------------------------------------------------
