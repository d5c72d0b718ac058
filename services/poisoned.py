"""Faults after which a GPU does nothing more for its process: all its later calls fail too."""

import torch

from sps2.common.vital import end_process

SIGNS = ("CUDA error", "Triton Error [CUDA]", "CUBLAS_STATUS_", "CUDNN_STATUS_")
"""In what libraries raise that have no type of their own for it."""
HARMLESS = ("out of memory", "_ALLOC_FAILED")
"""The same, of a call that failed alone."""


def end_if_poisoned(error: BaseException) -> None:
    """End this process if `error`, or one of its group, is such a fault; it starts anew then."""
    if is_poisoned(error):
        end_process("the GPU can do no more for this process", error)


def is_poisoned(error: BaseException) -> bool:
    """Whether a GPU's later calls from this process will fail as well."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_poisoned, error.exceptions))
    if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return False
    text = str(error)
    if any(sign in text for sign in HARMLESS):
        return False
    return isinstance(error, torch.AcceleratorError) or any(sign in text for sign in SIGNS)
