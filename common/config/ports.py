"""The ports of a cluster that its HTTP port determines."""

from typing import Any

SECOND_GATEWAY = 16
"""The bus port of the second gateway is this far behind the HTTP port unless configured."""


def http_port(tables: dict[str, Any]) -> int | None:
    """The HTTP port that the file has; None if it has none, or something else there."""
    gateway = tables.get("gateway")
    port = gateway.get("port") if isinstance(gateway, dict) else None
    return port if isinstance(port, int) else None


def with_ports(tables: dict[str, Any], port: int) -> dict[str, Any]:
    """The tables with all ports, as far as they have none of their own, after the HTTP port."""
    places = [
        ("gateway", "port"),
        ("gateway", "bus_port"),
        ("scheduler", "bus_port"),
        ("kvdir", "bus_port"),
        ("telemetry", "publish_port"),
        ("telemetry", "subscribe_port"),
    ]
    tables = {
        name: dict(value) if isinstance(value, dict) else value for name, value in tables.items()
    }
    for offset, (section, key) in enumerate(places):
        table = tables.setdefault(section, {})
        if not isinstance(table, dict):
            continue
        if (section, key) == ("gateway", "port"):
            table[key] = port
        else:
            table.setdefault(key, port + offset)
    tables.setdefault("meeting_port", port + len(places))
    gateway, second = tables["gateway"], port + SECOND_GATEWAY
    if isinstance(gateway, dict) and second <= 65535:
        gateway.setdefault("second_bus_port", second)
    return tables
