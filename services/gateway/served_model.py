"""The model that the gateway serves, and the limits of one request."""

import msgspec

from sps2.common.errors import Invalid
from sps2.common.model.generation import SamplingDefaults
from sps2.common.words import listed
from sps2.services.gateway.model_card import Card


class Served(msgspec.Struct, frozen=True):
    """The model behind the API, and the limits of one request."""

    model: str
    max_context: int
    """Tokens of prompt and answer together."""
    vocab_size: int
    eos_ids: tuple[int, ...]
    kv_token_bytes: int
    """Bytes of keys and values of one token in all layers."""
    max_choices: int
    fingerprint: str
    created: int
    aliases: tuple[str, ...] = ()
    """Other names that clients may use for the model."""
    sampling_defaults: SamplingDefaults = SamplingDefaults()
    """Sampling options for requests that do not set them."""
    default_max_tokens: int = 0
    """For chats without a limit; 0 allows as many as the context and the KV pools do."""
    tool_parser: str = "hermes"
    """In which form the model writes calls; see `tools.families`."""
    reasoning_parser: str = "none"
    """Between which tags it writes thoughts."""
    card: Card = Card()
    """What the model is."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the model; answers carry the first."""
        return self.model, *self.aliases

    def check_model(self, name: str | None) -> None:
        """Raise Invalid (`model_not_found`) if `name` is given and not the served model's."""
        if name is not None and name not in self.names:
            message = f"the model `{name[:200]}` does not exist; `{self.model}` is served here"
            if self.aliases:
                message += f", also as {listed([f'`{each}`' for each in self.aliases], 'and')}"
            message += "; `served_model_name` in the configuration gives it more names"
            raise Invalid(message, "model", "model_not_found")
