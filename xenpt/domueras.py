# SPDX-License-Identifier: GPL-2.0-or-later
"""What each release's libxenguest (before 4.15: libxc) does differently, as named flags.

Commits are those of xen.git; "first release" was read from its tags.
"""

from dataclasses import dataclass

from xenpt.eras import parse_version
from xenpt.errors import UsageError

OLDEST = (4, 0, 0)


@dataclass(frozen=True, slots=True)
class ToolstackEra:
    """How one release builds a PV domain."""

    # 4.7: a list at INIT_P2M has a mapping of its own (81a76e4b12, abdf3c5b2b), an initrd may stay
    # unmapped (8c45adec18), all that is mapped is allocated (ea7c8a3d0e). Before: the list inside,
    # in front of start_info, and one count of tables over whole slots.
    two_mappings: bool
    # 5bb2be127b (4.3): the initial mapping must fit into the domain; one page too many still
    # passed until fe52f6a47e (4.7).
    checks_memory: bool
    memory_slack: int
    # 840837907c (4.6): the list covers holes between vNUMA nodes.
    vnuma: bool
    # 415b58c184 (4.6): memory is asked for in 2 MiB extents first.
    populates_2m: bool
    # ad0b3df0f5 (4.14): entries of a PAE L3 get all the flags of a table.
    pae_l3_flags: bool
    # bdf693ee61 (4.11): the initrd is one of several modules, and named so.
    initrd_segment: str
    # 4c3a618b0a (4.19, 4.18.3, 4.17.5): a mapped initrd has its exact length, not whole pages.
    exact_segment_ends: bool
    # d17b7562d4 (4.20): a gzip initrd is handed over as it is.
    unpacks_initrd: bool
    # d0115f96ea (4.11): never less room than the packed file takes.
    keeps_packed_size: bool
    # d9d8b2678f (4.11) refuses an empty file; before, mapping it failed: with a panic since
    # c635c1ef78 (4.4), which names the file since 0091eb7f40 (4.7).
    empty_file_text: str
    # ec029aaa9a (4.2): a kernel that requires dom0 is refused.
    checks_dom0_required: bool
    # ee92c92b51 (4.9)
    refuses_autotranslated: bool
    # 60ee4fbc38 (4.3) drops guests without PAE; the hypervisor had dropped them long before.
    knows_two_levels: bool
    # 1787cc1679 (4.16): first of all the hypervisor must know the guest's type. Before, it had
    # refused to make a 32-bit domain before the library looked.
    checks_type_first: bool
    # 73db9f65da (4.2, 4.1.4), and f3fa3abf3e (4.8, 4.7.2, 4.6.5) for the stack: the hypervisor
    # takes no first instruction and no stack at addresses that are none.
    checks_entry: bool
    checks_stack: bool
    # Functions whose names are part of a text: f3627f009a, b4ec1faa91, 392478215a (4.7), and
    # ee21f10d70 (4.14).
    hooks_function: str
    late_function: str
    context_function: str
    memory_function: str
    table_function: str


def toolstack_era(xen: str) -> ToolstackEra:
    """The flags of the toolstack of Xen version `xen`.

    :raises UsageError: no version, or one whose toolstack is not modelled
    """
    version = parse_version(xen)
    if version < OLDEST:
        raise UsageError(f"Xen version {xen!r}: the oldest toolstack that is modelled is 4.0's")
    since = version.__ge__
    exact = since((4, 18, 3)) or (4, 17, 5) <= version < (4, 18, 0)
    checks_stack = since((4, 7, 2)) or (4, 6, 5) <= version < (4, 7, 0)
    return ToolstackEra(
        two_mappings=since((4, 7, 0)),
        checks_memory=since((4, 3, 0)),
        memory_slack=0 if since((4, 7, 0)) else 1,
        vnuma=since((4, 6, 0)),
        populates_2m=since((4, 6, 0)),
        pae_l3_flags=since((4, 14, 0)),
        initrd_segment="module0" if since((4, 11, 0)) else "ramdisk",
        exact_segment_ends=exact,
        unpacks_initrd=not since((4, 20, 0)),
        keeps_packed_size=since((4, 11, 0)),
        empty_file_text=_empty_file_text(version),
        checks_dom0_required=since((4, 2, 0)),
        refuses_autotranslated=since((4, 9, 0)),
        knows_two_levels=not since((4, 3, 0)),
        checks_type_first=since((4, 16, 0)),
        checks_entry=since((4, 1, 4)),
        checks_stack=checks_stack,
        hooks_function="xc_dom_set_arch_hooks" if since((4, 7, 0)) else "xc_dom_find_arch_hooks",
        late_function="bootlate_pv" if since((4, 7, 0)) else "arch_setup_bootlate",
        context_function="vcpu_x86_64" if since((4, 7, 0)) else "launch_vm",
        memory_function="meminit_pv" if since((4, 7, 0)) else "arch_setup_meminit",
        table_function="get_pg_table" if since((4, 14, 0)) else "get_pg_table_x86",
    )


def _empty_file_text(version: tuple[int, int, int]) -> str:
    if version >= (4, 11, 0):
        return "'{name}': zero length file"
    if version >= (4, 7, 0):
        return "failed to mmap file '{name}': Invalid argument"
    if version >= (4, 4, 0):
        return "failed to mmap file: Invalid argument"
    return "xc_dom_malloc_filemap: failed (on file `{name}')"
