"""Keeps the KV of prompts on disk, by what would be asked; over the bus alone."""

from sps2.common.api.requests import EstimateRequest
from sps2.common.messages import Pinned, Request


class PinPrompt(Request[Pinned], frozen=True):
    """spsctl to gateway: keep the cached pages of a prompt on disk, or do so no longer."""

    asked: EstimateRequest
    """The completion or chat whose prompt it is."""
    keep: bool
