"""Classes of the parts of a model by the names that a configuration gives them.

Names are `src.<room>.<module>.<Class>`, in the checkout and in the installed package alike. An export carries a table of
its own classes in place of this module (`portable/`).
"""

import importlib
import re

#: Package that holds the rooms: `src` in the checkout, `reslab` where the wheel is installed.
PACKAGE = __name__.partition(".")[0]


def find_class(room: str, target: str) -> object:
    """Return the class that `target` names in a room of this project, or None if there is none."""
    found = re.fullmatch(rf"src\.((?:models\.)?{room}\.[a-z0-9_]+)\.([A-Za-z0-9]+)", target)
    if found is None:
        return None
    try:
        return getattr(importlib.import_module(f"{PACKAGE}.{found[1]}"), found[2], None)
    except ImportError:
        return None
