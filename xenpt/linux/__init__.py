# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's early boot as a Xen PV guest: `Boot` runs the stages of one generation of it."""

from xenpt.linux.boot import Boot, StageResult, free_initial_p2m
from xenpt.linux.changes import profile, rule_names, with_rules
from xenpt.linux.cleanup import Cleanup
from xenpt.linux.rules import (
    MAINLINE,
    PROFILES,
    SEED,
    V4_1,
    V4_3,
    V6_1,
    V6_12,
    CleanupRules,
    LinuxRules,
)
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
    "V4_1",
    "V4_3",
    "V6_1",
    "V6_12",
    "free_initial_p2m",
    "profile",
    "rule_names",
    "with_rules",
]
