"""A frozen program with the commands of edgellm: they are imported by name when they run."""

from PyInstaller.utils.hooks import collect_submodules

hiddenimports = collect_submodules("edgellm.cli") + collect_submodules("edgellm.chat")
