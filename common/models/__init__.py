"""The models on this machine: where they are, how they are pulled and converted."""

from sps2.common.models.registry import (
    Progress,
    can_be_pulled,
    fingerprint,
    folder_of,
    item_bytes,
    locate,
    model_id,
    parse_hub,
    pulled,
    require_tokenizer,
    validate,
    weight_files,
)

__all__ = [
    "Progress",
    "can_be_pulled",
    "fingerprint",
    "folder_of",
    "item_bytes",
    "locate",
    "model_id",
    "parse_hub",
    "pulled",
    "require_tokenizer",
    "validate",
    "weight_files",
]
