from __future__ import annotations

from ipaddress import ip_address

import pytest

from router.addresses import is_public

PUBLIC = """
    1.1.1.1 8.8.8.8 93.184.215.14 172.15.255.255 172.32.0.0 100.63.255.255 100.128.0.0
    192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255 168.63.129.15
    2606:4700:4700::1111 2a00:1450:4001:80b::200e 2001:4860:4860::8888 64:ff9b::808:808
"""
NOT_PUBLIC = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.0 100.100.100.200 100.127.255.255 127.0.0.1
    127.255.255.254 168.63.129.16 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255
    192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1 198.19.255.255
    198.51.100.7 203.0.113.7 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
    :: ::1 ::127.0.0.1 ::808:808 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:808:808
    64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::808:808 100::1
    2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1 2001:10::1 2001:20::1 2001:db8::1
    2002:7f00:1::1 2002:808:808::1 3fff::1 5f00::1
    2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:10.0.0.1
    fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1
"""


@pytest.mark.parametrize("address", PUBLIC.split())
def test_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", [*PUBLIC.split(), *NOT_PUBLIC.split()])
def test_never_more_generous_than_the_standard_library(address: str) -> None:
    parsed = ip_address(address)
    if is_public(parsed) and not address.startswith("64:ff9b::"):
        assert parsed.is_global
        assert not parsed.is_multicast
