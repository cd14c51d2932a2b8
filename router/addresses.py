"""Which IP addresses belong to the public internet. Pure.

Written out rather than asked of `ipaddress.is_global`, whose answer changed between patch releases
of Python. After the IANA special-purpose address registries (RFC 6890) and the multicast ranges.
"""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NOT_PUBLIC_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; 0.0.0.0 reaches the machine itself
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' address translation, and a cloud's metadata at 100.100.100.200
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's metadata: looks public, answers the virtual machine only
        "169.254.0.0/16",  # link-local, and most clouds' metadata at 169.254.169.254
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments, and Oracle's metadata at 192.0.0.192
        "192.0.2.0/24",
        "192.88.99.0/24",  # relays into 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
PUBLIC_V6 = IPv6Network("2000::/3")  # all that was ever assigned for global unicast
NOT_PUBLIC_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments; Teredo, which embeds an IPv4 address, is the first
        "2001:db8::/32",
        "2002::/16",  # 6to4: embeds an IPv4 address
        "3fff::/20",
    )
)
NAT64 = IPv6Network("64:ff9b::/96")  # how a machine without IPv4 sees IPv4 hosts (RFC 6052)
ISATAP = (0x00005EFE, 0x02005EFE)  # followed by an IPv4 address in the lower half (RFC 5214)


def is_public(address: Address) -> bool:
    """Whether the address is a host on the public internet, whatever form it is written in.

    An IPv6 address that embeds an IPv4 one (mapped, compatible, 6to4, Teredo, ISATAP) is not
    public, except NAT64's, which are as public as the address they embed.
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_V4)
    if address in NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    embeds = int(address) >> 32 & 0xFFFFFFFF in ISATAP
    return address in PUBLIC_V6 and not embeds and not any(address in n for n in NOT_PUBLIC_V6)


def parse_address(text: str) -> Address:
    """A resolver's answer. Raises ValueError."""
    return ip_address(text)
