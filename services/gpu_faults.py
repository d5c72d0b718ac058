"""Faults after which all further GPU calls of a process fail."""

import torch

from sps2.common.vital import end_process

SIGNS = ("CUDA error", "Triton Error [CUDA]", "CUBLAS_STATUS_", "CUDNN_STATUS_")
"""Texts in errors of libraries that have no exception type for these faults."""
HARMLESS = ("out of memory", "_ALLOC_FAILED")
"""Texts in similar errors after which later calls still work."""


def end_if_poisoned(error: BaseException) -> None:
    """End this process, to be restarted, if `error` or one of its group is poisoning."""
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
