"""Calls of tools in what a model writes, and back into what it reads.

`formats` says how models write calls, `reader` takes them out of a text as it comes, `forced` holds an answer to a
call, `messages` brings calls of earlier answers into the shape that a template expects.
"""

from edgellm.toolcalls.formats import FORMATS, find_format
from edgellm.toolcalls.reader import ToolReader

__all__ = ["FORMATS", "ToolReader", "find_format"]
