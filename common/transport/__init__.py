"""The data plane: sends tensors from process to process."""

from sps2.common.transport.backends import BackendName, Choice, choose

__all__ = ["BackendName", "Choice", "choose"]
