"""Import a console script quickly. This module must stay light: it runs before the garbage collector is off."""

from __future__ import annotations

import gc
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


def import_script(module: str) -> ModuleType:
    """Import a console script's module with the garbage collector off.

    Imports create many thousands of objects and no garbage. They take most of the time of a run that finds nothing new,
    as most scheduled runs do. `gc.freeze` keeps later collections from scanning these objects.
    """
    gc.disable()
    script = import_module(module)
    gc.freeze()
    gc.enable()
    return script
