"""Which addresses of the internet a server may connect to on a stranger's behalf."""

from __future__ import annotations

import ipaddress

# Addresses that stand for others, so that what they reach is not what they say: 6to4 and its relays, Teredo.
# IPv4-mapped, IPv4-compatible, NAT64 and every other kind of IPv6 lie outside of 2000::/3.
INDIRECT = [ipaddress.ip_network(n) for n in ("192.88.99.0/24", "2001::/32", "2002::/16")]
# Newer documentation ranges than some Pythons know, and a cloud's service to its machines under a public address.
SPECIAL = [ipaddress.ip_network(n) for n in ("3fff::/20", "168.63.129.16/32")]
UNICAST = ipaddress.ip_network("2000::/3")


def is_public(text: str) -> bool:
    """Whether an IPv4 or IPv6 address is one anybody on the internet can be asked at. False for what is no address."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 6 and address not in UNICAST:
        return False
    if any(address in network for network in (*INDIRECT, *SPECIAL)):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)
