"""Whether clean-fid can compute its distances, for the commands that compare with it."""

import inspect
from importlib.metadata import version

import scipy.linalg


def check_clean_fid() -> None:
    """Raise ValueError if clean-fid cannot compute its Fréchet distance with the SciPy that is installed.

    clean-fid 0.1.35 passes `disp` to `scipy.linalg.sqrtm`, which SciPy 1.18 took out. FID of this toolkit does not need
    it.
    """
    if "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters:
        raise ValueError(
            f"clean-fid {version('clean-fid')} cannot compute its Fréchet distance with SciPy {scipy.__version__}; to "
            "compare with it, pip install 'scipy<1.18'"
        )
