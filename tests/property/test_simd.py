# SPDX-License-Identifier: GPL-2.0-or-later
"""Every instruction set does what the plain twin does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("simd", ["baseline", "v3", "v4"])
def test_every_instruction_set_equals_the_reference(simd):
    """XENPT_SIMD is read when the module is loaded, so each set runs in a process of its own."""
    environ = os.environ | {"XENPT_SIMD": simd, "CI": "1"}
    probe = [sys.executable, "-c", "import xenpt._core as c; print(c.simd())"]
    done = subprocess.run(probe, env=environ, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this processor or compiler has no {simd}: nothing to install")
    assert done.stdout.strip() == simd
    tests = Path(__file__).with_name("test_core_equals_reference.py")
    run = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(run, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
