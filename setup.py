# SPDX-License-Identifier: GPL-2.0-or-later
"""The extension module and its build modes; everything else is in pyproject.toml.

XENPT_BUILD=release (default) | debug (bounds checks) | trace (line tracing, for coverage)
           | asan (AddressSanitizer and UndefinedBehaviorSanitizer on the code of the release,
             without bounds checks that would come first; preload their runtime to import it).
"""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

MODES = ("release", "debug", "trace", "asan")
mode = os.environ.get("XENPT_BUILD", "release")
if mode not in MODES:
    sys.exit(f"setup.py: XENPT_BUILD={mode}: expected one of {', '.join(MODES)}")
checked = mode in ("debug", "trace")

cflags = ["-O3"] if mode == "release" else ["-O1", "-g", "-fno-omit-frame-pointer"]
lflags = []
if mode == "asan":
    lflags = ["-fsanitize=address,undefined"]
    cflags += [*lflags, "-fno-sanitize-recover=all"]

setup(
    ext_modules=cythonize(
        [
            Extension(
                "xenpt._core",
                ["xenpt/_core.pyx"],
                depends=["xenpt/_core.pxd", "xenpt/_simd.h", "xenpt/_kernels.h"],
                include_dirs=["xenpt"],
                extra_compile_args=cflags,
                extra_link_args=lflags,
                define_macros=[("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")]
                if mode == "trace"
                else [],
            )
        ],
        force=os.environ.get("XENPT_BUILD") is not None,
        # The C file of one mode must not be taken for that of another; coverage wants its beside
        # the source.
        build_dir=None if mode == "trace" else f"build/cython-{mode}",
        show_all_warnings=False,
        compiler_directives={
            "language_level": 3,
            "boundscheck": checked,
            "wraparound": False,
            "initializedcheck": checked,
            "linetrace": mode == "trace",
            "freethreading_compatible": True,
            "autotestdict": False,
        },
    )
)
