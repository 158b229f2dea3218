"""What this machine and this installation are, whether they are sound, and whether a file fits: `edgellm doctor`.

`examine` collects facts as plain types; `judge` makes checks of them, each ok, a warning or a fault with what to do
about it; `page` shows both to people. Nothing is sent anywhere, and nothing is measured that takes long.
"""

from .checks import Check, exit_code, judge
from .facts import SCHEMA, examine
from .page import as_text

__all__ = ["SCHEMA", "Check", "as_text", "examine", "exit_code", "judge"]
