# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of results, for `--plot`, `.plot()` and `xenpt report`: one function each.

matplotlib draws them; it is imported when one is drawn.
"""
