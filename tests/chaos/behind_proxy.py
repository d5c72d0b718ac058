"""Runs a service behind the proxies of a test: `python behind_proxy.py prefill --config FILE ..`.

Its bus and its data plane listen at `BEHIND` instead of 127.0.0.1, with the same ports; to the
others it gives the address 127.0.0.1, where a proxy listens. Reads and writes of KV pages on disk
take as long as the file named by `SPS2_CHAOS_DISK` says, if it exists.
"""

import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from sps2.common.bus.listener import Listener as BusListener
from sps2.common.transport.listener import Listener as PlaneListener

FRONT, BEHIND = "127.0.0.1", "127.0.0.2"


def behind_proxies() -> None:
    """Have both listeners of this process bind the hidden address."""
    bind, start = BusListener.bind, PlaneListener.start

    def hidden_bind(self: BusListener, address: str) -> str:
        return bind(self, address.replace(FRONT, BEHIND)).replace(BEHIND, FRONT)

    async def hidden_start(self: PlaneListener, host: str, port: int = 0) -> str:
        return (await start(self, host.replace(FRONT, BEHIND), port)).replace(BEHIND, FRONT)

    BusListener.bind = hidden_bind
    PlaneListener.start = hidden_start


def slow_disk(pause: Path) -> None:
    """Wait before each read and write of a page, for the seconds that the file `pause` has."""
    from sps2.services.decode.kv.page_store import PageStore

    for name in ("read", "write"):
        work = getattr(PageStore, name)

        def slowly(self: PageStore, *arguments: Any, work: Any = work) -> Any:
            if pause.exists():
                time.sleep(float(pause.read_text()))
            return work(self, *arguments)

        setattr(PageStore, name, slowly)


if __name__ == "__main__":
    service = sys.argv.pop(1)
    behind_proxies()
    if (named := os.environ.get("SPS2_CHAOS_DISK")) and service in ("decode", "mixed"):
        slow_disk(Path(named))
    runpy.run_module(f"sps2.services.{service}", run_name="__main__", alter_sys=True)
