"""torch, imported when it is first used.

A plan needs the class of every method and attack, and computes nothing. Their modules import torch from here, so that planning
does not wait for it. A class or constant of a module that needs torch itself loads it at once.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any


class Later(ModuleType):
    """Stands for a module, which is imported at the first use of an attribute."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


if TYPE_CHECKING:
    import torch as torch
    from torch.nn import functional as functional
else:
    torch, functional = Later("torch"), Later("torch.nn.functional")
