"""Who counts as one peer, where each may have so much of something."""

from __future__ import annotations

import ipaddress


def household(address: str) -> str:
    """What counts as one address: of IPv6 the /64, in which a single host may choose its addresses."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network((address, 64), strict=False))
