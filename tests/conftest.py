# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings of the whole test run: hypothesis profiles."""

import os

from hypothesis import settings

# Continuous integration must not fail by chance on an unrelated change: there the examples are
# the same in every run. At a desk they differ, so that many runs see more.
settings.register_profile("desk", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")
