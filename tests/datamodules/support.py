"""Keys of a small data module."""

from typing import Any

DATA_KEYS: dict[str, Any] = {
    "order": "shuffled",
    "document_attention": False,
    "epochs": None,
    "val_tokens": 512,
    "val_sets": None,
    "micro_batch_size": 2,
    "global_batch_size": 8,
    "workers": 0,
    "cache": "unused",
    "cache_gib": 1.0,
    "accept_changed": False,
}
