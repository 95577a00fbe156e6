# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot logs against the model: does it agree, line by line, and why did Xen or Linux give up?

Nothing that a line says is predicted from that line: its inputs come from others, see inputs.py.
"""

from xenpt.explain.boot import explain, explain_boot
from xenpt.explain.findings import Check, End, Explained

__all__ = ["Check", "End", "Explained", "explain", "explain_boot"]
