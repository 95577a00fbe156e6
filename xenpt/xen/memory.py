# SPDX-License-Identifier: GPL-2.0-or-later
"""Contents of guest pages that are, or were, page tables: 512 words each, by machine frame."""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from xenpt.abi import ENTRIES

Words = npt.NDArray[np.uint64]


class Memory:
    """Words of pages in one arena that grows; a page never seen before is read as `contents` says.

    :ivar contents: called once with the mfn of a page that is not known yet; gives its words
    """

    def __init__(self, contents: Callable[[int], npt.ArrayLike] | None = None) -> None:
        self.contents = contents
        self._pages = np.zeros((64, ENTRIES), np.uint64)
        self._row: dict[int, int] = {}

    def __contains__(self, mfn: int) -> bool:
        return mfn in self._row

    def mfns(self) -> list[int]:
        """Frames whose words are known, in the order in which they became so."""
        return list(self._row)

    def put(self, mfns: Iterable[int], pages: npt.NDArray[np.uint64]) -> None:
        """Set the words of pages."""
        for mfn, words in zip(mfns, pages, strict=True):
            self._new(mfn)[:] = words

    def words(self, mfn: int) -> Words:
        """The page's 512 words, to be changed in place."""
        row = self._row.get(mfn)
        if row is not None:
            known: Words = self._pages[row]
            return known
        words = self._new(mfn)
        words[:] = 0 if self.contents is None else self.contents(mfn)
        return words

    def _new(self, mfn: int) -> Words:
        row = self._row.setdefault(mfn, len(self._row))
        if row == len(self._pages):
            grown = np.zeros((2 * row, ENTRIES), np.uint64)
            grown[:row] = self._pages
            self._pages = grown
        words: Words = self._pages[row]
        return words
