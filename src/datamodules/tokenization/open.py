"""Tokenizers by address, by the statement of a manifest or a checkpoint, and in the folder of a model."""

import hashlib
import json
from pathlib import Path

import tiktoken

from src.datamodules.hub_tokenizer import build_tokenizer, read_gpt2_ranks
from src.datamodules.tokenization.base import FILE, Statement, Tokenizer
from src.datamodules.tokenization.byte_level import PROBE, ByteLevelTokenizer
from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.datamodules.tokenizer import N_VOCAB, RANKS_SHA256
from src.errors import one_line

GPT2 = "gpt2"
#: GPT-2's ids rounded up to a multiple of 1,024, the largest padding in use. More ids are of another tokenizer.
PADDED_VOCAB = 51200


def open_tokenizer(address: str) -> Tokenizer:
    """Return the tokenizer that `prepare.tokenizer` names.

    Args:
        address: gpt2, the name of a tiktoken encoding, a `tokenizer.json` or a folder that holds one.

    Raises:
        ValueError: there is none, or one that cannot be used; the message follows the address.
    """
    if address == GPT2:
        return gpt2_tokenizer()
    path = Path(address)
    if path.is_dir():
        path /= FILE
    if path.is_file():
        name = path.stem if path.name != FILE else path.absolute().parent.name
        return read_tokenizer(path, name)
    if address not in tiktoken.list_encoding_names():
        raise ValueError(
            f"is neither {GPT2}, a file or folder with a {FILE}, nor an encoding of tiktoken "
            f"({', '.join(tiktoken.list_encoding_names())})"
        )
    return convert_tiktoken(address)


def read_tokenizer(path: Path, name: str) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`; GPT-2's own where the file is GPT-2's.

    Raises:
        ValueError: the file cannot be read or used.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read ({one_line(error)})") from error
    return gpt2_tokenizer() if _is_gpt2(text) else ByteLevelTokenizer(name, text)


def _is_gpt2(text: str) -> bool:
    """Return true if a file has GPT-2's ids and pattern."""
    try:
        found = json.loads(text)
        vocab, level = found["model"]["vocab"], found["pre_tokenizer"]
    except (ValueError, KeyError, TypeError):
        return False
    plain = isinstance(level, dict) and level.get("type") == "ByteLevel" and level.get("use_regex", True)
    if not plain or level.get("add_prefix_space") or len(vocab) != N_VOCAB:
        return False
    return bool(vocab == build_tokenizer(read_gpt2_ranks())["model"]["vocab"])


def convert_tiktoken(name: str) -> Tokenizer:
    """Return the tokenizer of a tiktoken encoding, converted to the format of Hugging Face tokenizers.

    Raises:
        ValueError: its ranks cannot be fetched, or the conversion splits a text otherwise.
    """
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:  # of the network, of the file system
        raise ValueError(
            f"could not be fetched ({type(error).__name__}); check the network, set TIKTOKEN_CACHE_DIR to a folder that "
            "holds it, or give a tokenizer.json"
        ) from error
    if encoding.n_vocab == N_VOCAB and encoding.encode_ordinary(PROBE) == gpt2_tokenizer().encode(PROBE):
        return gpt2_tokenizer()
    unordered = {token: encoding.encode_single_token(token) for token in encoding.token_byte_values()}
    ranks = dict(sorted(unordered.items(), key=lambda item: item[1]))
    special = {text: encoding.encode_single_token(text) for text in encoding.special_tokens_set}
    pattern = encoding._pat_str  # tiktoken does not show it otherwise
    text = json.dumps(build_tokenizer(ranks, special, pattern), ensure_ascii=False) + "\n"
    tokenizer = ByteLevelTokenizer(name, text)
    if tokenizer.encode(PROBE) != encoding.encode_ordinary(PROBE):
        raise ValueError("splits texts in a way that tokenizer.json cannot state; give another encoding")
    return tokenizer


def open_stated(statement: Statement | None, content: str | None) -> Tokenizer | None:
    """Return the tokenizer of a statement; None where it states none that is known.

    Args:
        statement: of a manifest or a checkpoint.
        content: text of the file beside it.

    Raises:
        ValueError: the file is missing, or another one than stated.
    """
    if not statement:
        return None
    if statement.get("ranks_sha256") == RANKS_SHA256:
        return gpt2_tokenizer()
    stated = statement.get("sha256")
    if stated is None:
        return None
    if content is None:
        raise ValueError(f"{FILE} is missing; restore it")
    if hashlib.sha256(content.encode()).hexdigest() != stated:
        raise ValueError(f"{FILE} is not the stated one, whose sha256 is {str(stated)[:12]}; restore it")
    return ByteLevelTokenizer(str(statement.get("name")), content)


def or_gpt2(known: Tokenizer | None, vocab_size: int) -> Tokenizer | None:
    """Return a known tokenizer; GPT-2's where none is known and the vocabulary is GPT-2's, perhaps padded; or None."""
    return known or (gpt2_tokenizer() if N_VOCAB <= vocab_size <= PADDED_VOCAB else None)
