"""Answers of a given form: JSON of a schema, a regular expression or a grammar, held to token by token.

`compile_constraint` checks the form before a call starts and gives a factory: one `Constraint` (edgellm.sampling) for
each answer. The masks come from the package `llguidance`; what goes into it is written out by this package, so that no
form is let through that would be held to in part only (docs/structured_output.md lists what is refused).
"""

from edgellm.grammar.compile import check_form, compile_constraint

__all__ = ["check_form", "compile_constraint"]
