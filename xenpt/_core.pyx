# SPDX-License-Identifier: GPL-2.0-or-later
"""Hot loops over packed page-table words."""
