"""Text or token ids of rows: a column of a table or a field of JSON objects, `a.b` for the field b of a.

A name that contains a dot is looked for as it is first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from src.errors import UserError


@dataclass(frozen=True)
class Column:
    """Column or field of the documents, and whether it holds token ids instead of text."""

    name: str = "text"
    holds_ids: bool = False


def read_rows(table: Any, field: Column, where: str) -> list[bytes | str | None]:  # a table or record batch of pyarrow
    """Return the rows of a column as bytes: text that is checked later, or ids of four bytes.

    Raises:
        UserError: there is no such column, or none of strings or of ids.
    """
    names = split_field(table.schema, field, where)
    column = table.column(names[0])
    for name in names[1:]:
        column = compute.struct_field(column, name)
    if field.holds_ids:
        return [
            None if row is None else np.array(row, dtype="<i8").astype("<u4").tobytes() for row in column.to_pylist()
        ]
    # As bytes, since pyarrow stops at text that is not UTF-8.
    rows: list[bytes | str | None] = column.cast(pa.large_binary()).to_pylist()
    return rows


def split_field(schema: Any, wanted: Column, where: str) -> list[str]:  # a schema of pyarrow
    """Return the names that lead to a column of strings, or of lists of token ids.

    Raises:
        UserError: as `read_rows`.
    """
    field = wanted.name
    names = [field] if field in schema.names else field.split(".")
    kind: Any = pa.struct(list(schema))
    for name in names:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            strings = _string_fields(pa.struct(list(schema)))
            others = [] if len(strings) == len(schema.names) else [f"columns: {', '.join(schema.names)}"]
            raise UserError(f"{where}: no column {field}; {'; '.join([*others, describe_fields(strings)])}")
        kind = kind.field(name).type
    if wanted.holds_ids:
        if not _is_ids(kind):
            raise UserError(f"{where}: column {field} holds {kind}, not lists of token ids; see prepare.tokens_field")
        return names
    if _is_ids(kind):
        raise UserError(f"{where}: column {field} holds {kind}; for token ids give prepare.tokens_field={field}")
    if not _is_string(kind):
        raise UserError(
            f"{where}: column {field} holds {kind}, not strings; give prepare.text_field=<column of strings>"
        )
    return names


def describe_fields(names: Sequence[str]) -> str:
    """Return the end of a message: the key that selects the only field of strings, or those to choose from."""
    if not names:
        return "no column or field holds strings"
    shown = ", ".join(names[:12])
    return f"give prepare.text_field={names[0]}" if len(names) == 1 else f"give prepare.text_field=<one of {shown}>"


def string_fields(fields: Mapping[str, Any]) -> list[str]:
    """Return the dotted names of the strings of a JSON object, the longest string first."""
    return [name for name, _ in sorted(_strings(fields), key=lambda pair: -len(pair[1]))]


def read_field(fields: Mapping[str, Any], field: str) -> tuple[bool, Any]:
    """Return whether a JSON object has a field, and its value."""
    if field in fields:
        return True, fields[field]
    value: Any = fields
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            return False, None
        value = value[name]
    return True, value


def _is_string(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_null(kind)
    )


def _is_ids(kind: Any) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pa.types.is_integer(kind.value_type))


def _string_fields(kind: Any, prefix: str = "") -> list[str]:
    names: list[str] = []
    for child in kind:
        name = f"{prefix}{child.name}"
        if pa.types.is_struct(child.type):
            names += _string_fields(child.type, f"{name}.")
        elif _is_string(child.type):
            names.append(name)
    return names


def _strings(tree: object, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(tree, dict):
        return []
    found: list[tuple[str, str]] = []
    for name, value in tree.items():
        found += [(f"{prefix}{name}", value)] if isinstance(value, str) else _strings(value, f"{prefix}{name}.")
    return found
