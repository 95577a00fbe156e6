# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings of the whole test run: hypothesis profiles, and what Ctrl-C does."""

import os
import signal

from hypothesis import settings

# Continuous integration must not fail by chance on an unrelated change: there the examples are
# the same in every run. At a desk they differ, so that many runs see more.
settings.register_profile("desk", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

# A shell that runs the tests in the background has them ignore Ctrl-C, and all that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
