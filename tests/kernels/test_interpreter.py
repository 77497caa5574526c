"""Every kernel against float64, interpreted: each file of interpreted/ in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
NUMPY_SCALARS = "ignore:Conversion of an array with ndim > 0:DeprecationWarning"
"""Of Triton 3.6's interpreter; an error with NumPy 2.4, so the tests need an older one."""
NOT_A_NUMBER = "ignore:invalid value encountered:RuntimeWarning"
"""Of NumPy, where a tile's unused rows hold what lies in memory; no result may come of them."""
FILES = sorted(FOLDER.glob("check_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_kernels_compute_what_their_references_do(file):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:xdist", "-x"),
            *("-W", NUMPY_SCALARS, "-W", NOT_A_NUMBER, str(file)),
        ],
        cwd=FOLDER.parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
