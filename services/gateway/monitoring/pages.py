"""The page that Prometheus scrapes: whichever gateway answers, it has those of all."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from sps2.common.errors import ServiceError
from sps2.services.gateway.monitoring.federation import Federation
from sps2.services.gateway.monitoring.request_metrics import Metrics
from sps2.services.gateway.others.gateways import Others
from sps2.services.gateway.others.inside import ReadMetrics

LABEL = "gateway"


class Pages:
    """Makes the page.

    Args:
        own: the metrics of this gateway.
        federation: those of every process.
    """

    def __init__(self, own: Metrics, federation: Federation, others: Others) -> None:
        self._own = own
        self._federation = federation
        self._others = others

    async def page(self) -> bytes:
        """The text. Where there are several gateways, their own metrics have a label `gateway`, the
        number; those of one that does not answer are left out."""
        texts = {}
        if self._others:
            asked = {each: self._text(each) for each in self._others.peers}
            found = zip(asked, await asyncio.gather(*asked.values()), strict=True)
            texts = {number: text for number, text in found if text is not None}
        return await asyncio.to_thread(self._written, texts)

    async def _text(self, number: int) -> str | None:
        try:
            return (await self._others.call(self._others.peers[number], ReadMetrics())).text
        except ServiceError:
            return None

    def _written(self, texts: Mapping[int, str]) -> bytes:
        pages = {each: text_string_to_metric_families(text) for each, text in texts.items()}
        page = CollectorRegistry()
        own = self._own.registry
        page.register(Labelled(self._others.number, own, pages) if self._others else own)
        page.register(self._federation)
        return generate_latest(page)


class Labelled(Collector):
    """The metrics of all gateways, each with the number of its gateway.

    Args:
        number, own: of this gateway.
        others: families of metrics by number.
    """

    def __init__(self, number: int, own: Collector, others: Mapping[int, Iterable[Metric]]) -> None:
        self._pages = {number: own.collect(), **others}

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for number, page in sorted(self._pages.items()):
            for each in page:
                known = families.setdefault(
                    each.name, Metric(each.name, each.documentation, each.type)
                )
                known.samples += [
                    sample._replace(labels={LABEL: str(number)} | sample.labels)
                    for sample in each.samples
                ]
        yield from families.values()
