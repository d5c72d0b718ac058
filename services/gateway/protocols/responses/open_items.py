"""The output item that grows: a message, thoughts, or a call of a function."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from sps2.common.api import ChatLogprob
from sps2.services.gateway.protocols.responses.answers import (
    ItemStatus,
    Output,
    OutputCall,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
)
from sps2.services.gateway.protocols.responses.events import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    TextDelta,
    TextDone,
)
from sps2.services.gateway.protocols.responses.translate import new_id


class OpenItem(ABC):
    """Base of the items that grow.

    Args:
        numbers: numbers the events.
        index: of the item in the output.
        kind: its type.
    """

    def __init__(self, numbers: Iterator[int], index: int, kind: str) -> None:
        self._numbers = numbers
        self._index = index
        self._id = new_id(kind)
        self._texts: list[str] = []

    def begin(self) -> Iterator[Event]:
        """The first events of the item."""
        yield ItemAdded(
            sequence_number=next(self._numbers),
            output_index=self._index,
            item=self.item("in_progress"),
        )

    def end(self, status: ItemStatus) -> Iterator[Event]:
        """The last events of the item."""
        yield ItemDone(
            sequence_number=next(self._numbers), output_index=self._index, item=self.item(status)
        )

    @abstractmethod
    def item(self, status: ItemStatus) -> Output:
        """The item as far as it is."""

    @property
    def _text(self) -> str:
        return "".join(self._texts)


class OpenMessage(OpenItem):
    """A message, which has one part."""

    def __init__(self, numbers: Iterator[int], index: int) -> None:
        super().__init__(numbers, index, "message")
        self._logprobs: list[ChatLogprob] = []

    def begin(self) -> Iterator[Event]:
        yield from super().begin()
        yield PartAdded(
            sequence_number=next(self._numbers),
            output_index=self._index,
            item_id=self._id,
            content_index=0,
            part=OutputText(text=""),
        )

    def add(self, text: str, logprobs: tuple[ChatLogprob, ...] = ()) -> Event:
        """Add text, and the log-probabilities of its tokens."""
        self._texts.append(text)
        self._logprobs += logprobs
        return TextDelta(
            sequence_number=next(self._numbers),
            output_index=self._index,
            item_id=self._id,
            content_index=0,
            delta=text,
            logprobs=logprobs,
        )

    def end(self, status: ItemStatus) -> Iterator[Event]:
        part = self._part()
        yield TextDone(
            sequence_number=next(self._numbers),
            output_index=self._index,
            item_id=self._id,
            content_index=0,
            text=part.text,
            logprobs=part.logprobs,
        )
        yield PartDone(
            sequence_number=next(self._numbers),
            output_index=self._index,
            item_id=self._id,
            content_index=0,
            part=part,
        )
        yield from super().end(status)

    def item(self, status: ItemStatus) -> OutputMessage:
        content = [] if status == "in_progress" else [self._part()]
        return OutputMessage(id=self._id, status=status, content=content)

    def _part(self) -> OutputText:
        return OutputText(text=self._text, logprobs=tuple(self._logprobs))


class OpenReasoning(OpenItem):
    """Thoughts, which have one part."""

    def __init__(self, numbers: Iterator[int], index: int) -> None:
        super().__init__(numbers, index, "reasoning")

    def begin(self) -> Iterator[Event]:
        yield from super().begin()
        yield PartAdded(
            sequence_number=next(self._numbers),
            output_index=self._index,
            item_id=self._id,
            content_index=0,
            part=ReasoningText(""),
        )

    def add(self, text: str) -> Event:
        """Add text."""
        self._texts.append(text)
        return ReasoningDelta(
            sequence_number=next(self._numbers),
            output_index=self._index,
            item_id=self._id,
            content_index=0,
            delta=text,
        )

    def end(self, status: ItemStatus) -> Iterator[Event]:
        yield ReasoningDone(
            sequence_number=next(self._numbers),
            output_index=self._index,
            item_id=self._id,
            content_index=0,
            text=self._text,
        )
        yield PartDone(
            sequence_number=next(self._numbers),
            output_index=self._index,
            item_id=self._id,
            content_index=0,
            part=ReasoningText(self._text),
        )
        yield from super().end(status)

    def item(self, status: ItemStatus) -> OutputReasoning:
        content = [] if status == "in_progress" else [ReasoningText(self._text)]
        return OutputReasoning(id=self._id, status=status, content=content)


class OpenCall(OpenItem):
    """A call of a function.

    Args:
        number: of the call among those of the answer.
        call_id: joins it with its result.
        name: of the function.
    """

    def __init__(
        self, numbers: Iterator[int], index: int, number: int, call_id: str, name: str
    ) -> None:
        super().__init__(numbers, index, "function_call")
        self.number = number
        self._call_id = call_id
        self._name = name

    def add(self, text: str) -> Event:
        """Add to the arguments."""
        self._texts.append(text)
        return ArgumentsDelta(
            sequence_number=next(self._numbers),
            output_index=self._index,
            item_id=self._id,
            delta=text,
        )

    def end(self, status: ItemStatus) -> Iterator[Event]:
        yield ArgumentsDone(
            sequence_number=next(self._numbers),
            output_index=self._index,
            item_id=self._id,
            name=self._name,
            arguments=self._text,
        )
        yield from super().end(status)

    def item(self, status: ItemStatus) -> OutputCall:
        return OutputCall(
            id=self._id,
            status=status,
            call_id=self._call_id,
            name=self._name,
            arguments=self._text,
        )
