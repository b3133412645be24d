"""Which IP addresses are of the public internet: those that a client may have us connect to."""

from __future__ import annotations

import ipaddress

# IPv6 that stands for an IPv4 address, which is the one that is meant (RFC 6052; 6to4 and Teredo are `ipaddress`'s).
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# The part of IPv6 that is given out (RFC 4291): without mapped, compatible, local and not yet used addresses.
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# Public by their number for `ipaddress` (in some versions of Python), and not by what they are used for.
NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # where machines at Azure get their settings
        "192.0.0.0/24",  # those of Oracle's cloud, and other protocols' own (RFC 6890)
        "192.88.99.0/24",  # relays of 6to4 (RFC 7526)
        "3fff::/20",  # for documentation (RFC 9637)
    )
)


def is_public(host: str) -> bool:
    """Whether an IP address, with or without a zone, is of the public internet. Anything else raises `ValueError`."""
    address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address.teredo:
            inner = address.teredo[1]
        if inner is None and address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if address not in GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in network for network in NOT_PUBLIC)
