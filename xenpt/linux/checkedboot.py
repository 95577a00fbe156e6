# SPDX-License-Identifier: GPL-2.0-or-later
"""Checked mode: each stage of a boot once more, call by call and store by store, under Xen's rules.

The stage that only counts says what its result is; here it has to come about. Behind it the words
of all tables, and the types and counts of all frames, are those of its result, and the costs are
those that were counted.
"""

from dataclasses import dataclass, replace
from typing import Self

from xenpt.cost import Cost
from xenpt.errors import MappingError
from xenpt.linux.agreement import compare
from xenpt.linux.cleanup import Cleanup
from xenpt.linux.stages import STAGES, Stage
from xenpt.linux.standins import with_stand_ins
from xenpt.linux.state import BootState
from xenpt.xen.guest import Guest
from xenpt.xen.hypercalls import Hypercalls


@dataclass(slots=True)
class CheckedBoot:
    """The second run of a boot.

    :ivar state: as the last stage left it; with a place for each table that no symbol names
    :ivar guest: its domain
    :ivar nr_words: words that were compared
    """

    state: BootState
    guest: Guest
    nr_words: int = 0

    @classmethod
    def of(cls, state: BootState) -> Self | None:
        """A boot at its entry; None where the kernel's image has no room for its static tables."""
        domain = state.domain
        kernel = with_stand_ins(domain.plan.image, state.rules)
        if kernel is None:
            return None
        placed = replace(domain, plan=replace(domain.plan, image=kernel))
        return cls(replace(state, domain=placed), Guest(domain, state.e820))

    def as_dict(self) -> dict[str, int]:
        """`checked` of the `boot` JSON object."""
        return {"calls": self.guest.nr_calls, "words": self.nr_words}

    def follow(self, stage: Stage, before: BootState, counted: Cost | Cleanup) -> None:
        """Run a stage.

        :param before: the state that the stage was counted from; it may have been changed from
            outside since the stage before
        :param counted: what the stage returned

        :raises RefusedError: Xen refuses a call, or a store faults
        :raises MappingError: the stage comes to another result here
        """
        known = self.state
        begin = replace(
            before,
            domain=known.domain,
            ro_frames=known.ro_frames,
            ro_entries=known.ro_entries,
            own_entries=known.own_entries,
            early_table=known.early_table,
        )
        self.state, made = STAGES[stage](begin, Hypercalls(xen=self.guest))
        if made != counted:
            raise MappingError(f"checked mode: {stage.value} has other costs call by call")
        self.nr_words += compare(self.state, self.guest)
