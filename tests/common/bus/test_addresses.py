"""Names and addresses that services bind."""

import pytest

from sps2.common.bus.addresses import address_of
from sps2.common.errors import Invalid


def test_an_ipv6_address_is_refused_in_words() -> None:
    with pytest.raises(Invalid, match=r"::1 has no IPv4 address here .* IPv6 is not supported"):
        address_of("::1")
