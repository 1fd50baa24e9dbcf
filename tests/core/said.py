"""What is said of settings, as tables of tests compare it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from domaingallery_core.settings import Setting, Settings, settings_of


def said(kind: type[Settings]) -> dict[str, tuple[Any, Setting]]:
    """Return the default of each setting of a class and what it may be, without what a user reads of it."""
    return {
        name: (default, replace(setting, help="")) for name, (setting, default) in settings_of(kind).items()
    }


def explained(kind: type[Settings]) -> set[str]:
    """Return the settings of a class of which a sentence tells a user something."""
    return {name for name, (setting, _) in settings_of(kind).items() if setting.help.endswith(".")}
