"""The search, its journal and its scoring.

`vitas.search(...)` is a function, and this folder has its name: Python sets `vitas.search` to this module as soon as
anything in it is imported. And so the module can be called.
"""

import sys
from types import ModuleType
from typing import Any


class _Search(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See `vitas.api.search`."""
        from vitas import api

        return api.search(*arguments, **options)


sys.modules[__name__].__class__ = _Search
