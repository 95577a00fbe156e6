# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's early boot as a Xen PV guest: `Boot` runs the stages of one generation of it."""

from xenpt.linux.boot import Boot, StageResult, free_initial_p2m
from xenpt.linux.cleanup import Cleanup
from xenpt.linux.rules import MAINLINE, PROFILES, SEED, V6_1, CleanupRules, LinuxRules
from xenpt.linux.stages import Stage

__all__ = [
    "Boot",
    "Cleanup",
    "CleanupRules",
    "LinuxRules",
    "MAINLINE",
    "PROFILES",
    "SEED",
    "Stage",
    "StageResult",
    "V6_1",
    "free_initial_p2m",
]
