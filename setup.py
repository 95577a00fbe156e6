# SPDX-License-Identifier: GPL-2.0-or-later
"""The extension module and its build modes; everything else is in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [Extension("xenpt._core", ["xenpt/_core.pyx"], extra_compile_args=["-O3"])],
        compiler_directives={"language_level": 3, "boundscheck": False, "wraparound": False, "initializedcheck": False},
    )
)
