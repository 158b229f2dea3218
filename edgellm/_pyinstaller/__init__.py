"""Tells PyInstaller how to freeze a program that uses edgellm (docs/packaging.md).

PyInstaller finds this package by the entry point `pyinstaller40` and needs no option; nothing here is imported by
edgellm itself.
"""

from __future__ import annotations

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """The folders with hooks, as PyInstaller's entry point group `pyinstaller40` asks for them."""
    return [str(Path(__file__).resolve().parent)]
