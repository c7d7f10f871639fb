"""Import a console script quickly.

This module must stay small, because the garbage collector is still on while Python imports it.
"""

from __future__ import annotations

import gc
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


def import_script(module: str) -> ModuleType:
    """Import a console script's module with the garbage collector off.

    Imports create many thousands of objects and no garbage. Most scheduled runs find nothing new, and imports take most
    of their time. `gc.freeze` keeps later collections from scanning the imported objects.
    """
    gc.disable()
    script = import_module(module)
    gc.freeze()
    gc.enable()
    return script
