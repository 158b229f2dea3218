"""Tokenizers: one per kind of vocabulary, behind the one class `Tokenizer`."""

from edgellm.tokenizers.streaming import StopMatcher, StreamDecoder
from edgellm.tokenizers.tokenizer import Tokenizer

__all__ = ["StopMatcher", "StreamDecoder", "Tokenizer"]
