# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypercalls in any order: xenpt.xen.checked against the plain model of tests/xenmodel.py.

The random run takes a few thousand calls; `python tools/random_hypercalls.py 1000000` takes more.
"""

from hypercallpair import END, FIRST, FLAGS, MFNS, SLOTS, Pair, address, run
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule


class Hypercalls(RuleBasedStateMachine):
    @initialize(privileged=st.booleans())
    def start(self, privileged):
        self.pair = Pair(privileged=privileged)

    frame = st.sampled_from(MFNS)
    word = st.builds(lambda mfn, flags: mfn << 12 | flags, frame, st.sampled_from(FLAGS))
    slot = st.sampled_from(SLOTS)

    @rule(mfn=frame, slot=slot, word=word, command=st.sampled_from((0, 0, 0, 1, 2, 3, 5)))
    def mmu_update(self, mfn, slot, word, command):
        self.pair.call("mmu_update", mfn << 12 | slot << 3 | command, word)

    @rule(slots=st.tuples(slot, slot, slot, slot), word=word, canonical=st.booleans())
    def update_va_mapping(self, slots, word, canonical):
        self.pair.call("update_va_mapping", address(slots, canonical=canonical), word)

    @rule(level=st.integers(1, 4), mfn=frame)
    def pin(self, level, mfn):
        self.pair.call("pin", level, mfn)

    @rule(
        name=st.sampled_from(("unpin", "new_baseptr", "new_user_baseptr", "clear_page")), mfn=frame
    )
    def of_one_frame(self, name, mfn):
        self.pair.call(name, mfn)

    @rule(mfn=frame, source=frame)
    def copy_page(self, mfn, source):
        self.pair.call("copy_page", mfn, source)

    @rule(mfns=st.lists(frame, max_size=2))
    def set_gdt(self, mfns):
        self.pair.call("set_gdt", mfns)

    @rule(mfns=st.lists(frame, max_size=2))
    def decrease_reservation(self, mfns):
        self.pair.call("decrease_reservation", mfns)

    @rule(mfn=st.integers(FIRST, END - 1), slot=slot, word=word)
    def store(self, mfn, slot, word):
        self.pair.call("store", mfn, slot, word)

    @invariant()
    def both_have_the_same_frames(self):
        if hasattr(self, "pair"):
            self.pair.compare_frames()

    def teardown(self):
        if hasattr(self, "pair"):
            self.pair.compare_words()
            self.pair.recount()


TestHypercalls = Hypercalls.TestCase
TestHypercalls.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_random_hypercalls_are_answered_as_by_the_model():
    answers = run(4000)
    for name in ("mmu_update", "update_va_mapping", "pin", "unpin", "store"):
        accepted = answers[name, 0]
        refused = sum(nr for (of, answer), nr in answers.items() if of == name and answer)
        assert min(accepted, refused) > 20, f"{name}: {accepted} accepted, {refused} refused"
