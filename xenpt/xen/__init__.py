# SPDX-License-Identifier: GPL-2.0-or-later
"""Builders of PV guests: a plan becomes page tables, a P->M list and start_info."""

from xenpt.domuplan import DomuPlan
from xenpt.p2m import P2M
from xenpt.plan import Plan
from xenpt.xen.dom0 import Domain
from xenpt.xen.dom0 import build as build_dom0
from xenpt.xen.domu import build_domu


def build(plan: Plan, *, p2m: P2M | None = None, shared_info: int = 0) -> Domain:
    """Build the guest that `plan` lays out, with the builder that it is a plan of.

    :param p2m: where a real host put the pages; None places them in a modelled host
    :param shared_info: machine address that start_info shall name
    :raises PanicError: the builder gives up on this plan
    """
    if isinstance(plan, DomuPlan):
        return build_domu(plan, p2m=p2m, shared_info=shared_info)
    return build_dom0(plan, p2m=p2m, shared_info=shared_info)
