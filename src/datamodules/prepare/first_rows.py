"""Checks of the first rows of a source before all are read: the size of the validation shard, a missing text field."""

import json
import logging

from src.datamodules.prepare.columns import describe_fields, read_field, string_fields
from src.datamodules.prepare.sources import Source
from src.datamodules.prepare.tokenize_pool import encode_by
from src.datamodules.tokenization.base import Tokenizer
from src.errors import UserError

log = logging.getLogger(__name__)

#: Text to tokenize for the estimate; a smaller source is counted completely.
SAMPLE_BYTES = 1 << 20
SHARE, SHARE_OF_SMALL = 1 / 100, 1 / 10
#: Not less, as long as it is at most `SHARE_OF_SMALL` of the source; not more in any case.
FLOOR, CAP = 1 << 16, 100_000_000


def choose_val_tokens(source: Source, tokenizer: Tokenizer) -> int:
    """Return the number of validation tokens that fits a source, and log it.

    A hundredth of the tokens, at least 65,536 of them, but at most a tenth and at most 100,000,000. It follows from
    the content of the source alone. A source of unknown size counts as a large one.

    Args:
        source: documents.
        tokenizer: tokenizer of the tokens.
    """
    tokens, size, share = 0, 0, None
    for chunk in source.chunks({}):
        tokens, share = tokens + len(encode_by(tokenizer, chunk).tokens), chunk.share
        size += sum(len(row) for row in chunk.rows if row)
        if tokens and size >= SAMPLE_BYTES:
            break
    else:
        share = 1.0
    if not share or not tokens:
        return CAP
    total = tokens / share
    chosen = max(1, int(min(max(SHARE * total, FLOOR), SHARE_OF_SMALL * total, CAP)))
    about = "about " if share < 1 else ""
    log.info("prepare.val_tokens=auto: %s tokens of %s%s", f"{chosen:,}", about, f"{int(total):,}")
    return chosen


def check_text_field(source: Source) -> None:
    """Raise an error if the first rows are JSON objects with strings, and none has the field of the text.

    Raises:
        UserError: names the fields that hold strings.
    """
    chunk = next(iter(source.chunks({})), None)
    if chunk is None or chunk.json_field is None or chunk.holds_ids:
        return
    others: list[str] = []
    for row in chunk.rows:
        fields = _parse_object(row)
        if fields is not None and read_field(fields, chunk.json_field)[0]:
            return
        others = others or (string_fields(fields) if fields else [])
    if others:
        raise UserError(
            f"{chunk.name}: no field {chunk.json_field} in its first {len(chunk.rows)} rows; {describe_fields(others)}"
        )


def _parse_object(row: bytes | str | None) -> dict[str, object] | None:
    try:
        found = json.loads(row) if isinstance(row, bytes) else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
