"""Document files of a folder or a pattern: which are read, which are skipped, which cannot be what they should be.

Hidden files and folders are skipped: `._a.jsonl` is what macOS stores beside `a.jsonl`, and folders such as `.cache`
hold copies. A file that stands for another one (a Git LFS pointer, a link to nothing) is an error. Where there are files
of token ids, the others beside them (OLMo's lists of documents) are skipped.
"""

import glob
import logging
from pathlib import Path

from src.datamodules.prepare import token_files
from src.datamodules.prepare.documents import COMPRESSIONS, KINDS, kind_of
from src.errors import UserError
from src.files import is_lfs_pointer

log = logging.getLogger(__name__)

FORMS = f"{', '.join(KINDS)} (all but .parquet also {', '.join(COMPRESSIONS)}), {', '.join(token_files.KINDS)}"


def find_files(address: str, otherwise: str) -> tuple[Path, list[Path]]:
    """Return the folder that names are relative to, and the files in the order of their names.

    Args:
        address: a file, a folder or a pattern.
        otherwise: what else may be read, for the message.

    Raises:
        UserError: there is no file to read, or one that is not here.
    """
    place = Path(address)
    if place.is_file() or (place.is_symlink() and not place.exists()):
        found, place = [place], place.parent
    elif place.is_dir():
        files = sorted(path for path in place.rglob("*") if path.is_file() or path.is_symlink())
        is_visible = {path: not any(part.startswith(".") for part in path.relative_to(place).parts) for path in files}
        hidden = [path for path in files if not is_visible[path] and _is_document(path)]
        if hidden:
            log.info("skipped %d hidden files, such as %s", len(hidden), hidden[0])
        found = [path for path in files if is_visible[path] and _is_document(path)]
        others = [p for p in files if is_visible[p] and not _is_document(p) and not token_files.is_part(p)]
        if found and others:
            log.info("skipped %d files of other forms, such as %s", len(others), others[0])
    else:
        found = sorted(path for path in map(Path, glob.glob(address, recursive=True)) if _is_document(path))
        place = place.parent
    if any(token_files.is_token_file(path) for path in found):
        others = [path for path in found if not token_files.is_token_file(path)]
        if others:
            log.info("skipped %d files beside those of token ids, such as %s", len(others), others[0])
        found = [path for path in found if path not in others]
    if not found or not all(_names_a_form(path) for path in found):
        lacks = "holds nothing to read" if glob.has_magic(address) or Path(address).exists() else "does not exist"
        raise UserError(f"prepare.source={address} {lacks}; give a file, folder or pattern of {FORMS}, {otherwise}")
    for path in found:
        if not path.exists():
            raise UserError(
                f"{path} is a link to {path.readlink()}, which does not exist; fetch the content, then run again"
            )
        if is_lfs_pointer(path):
            raise UserError(f"{path} is a Git LFS pointer, not the content; run git lfs pull where it was cloned")
    return place, found


def reject_output_inside(section: str, source: str, output: Path) -> None:
    """Reject an output folder whose own files would be documents of a local source folder.

    Args:
        section: section of the two keys, `prepare` or `tokenizer`.
        source: value of its `source`.
        output: value of its `output`.

    Raises:
        UserError: the source is or contains the output, and not under a hidden folder, which no source reads. A data
            set that was saved to the folder reads its own files only.
    """
    folder, inner = Path(source).resolve(), output.resolve()
    if not folder.is_dir() or is_saved_data_set(folder) or not inner.is_relative_to(folder):
        return
    if any(part.startswith(".") for part in inner.relative_to(folder).parts):
        return
    where = "is" if inner == folder else "lies inside"
    raise UserError(
        f"{section}.output={output} {where} {section}.source={source}, whose documents would then include its files; "
        "give a folder outside"
    )


def is_saved_data_set(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of datasets."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _names_a_form(path: Path) -> bool:
    return kind_of(path) is not None or token_files.is_token_file(path)


def _is_document(path: Path) -> bool:
    return _names_a_form(path) and (path.is_file() or (path.is_symlink() and not path.exists()))
