"""Models by name: references to Hugging Face's hub, downloads, aliases, and what is on this machine.

Files are used where the hub's own client would put them (its cache), so nothing is stored twice. Looking at the cache
needs no further package; only what talks to the hub needs `huggingface_hub` (`pip install 'edgellm[hub]'`).
"""

from .download import PulledFile, PullReport, fetch, pull
from .lookup import resolve
from .reference import Reference, is_reference, parse

__all__ = ["PullReport", "PulledFile", "Reference", "fetch", "is_reference", "parse", "pull", "resolve"]
