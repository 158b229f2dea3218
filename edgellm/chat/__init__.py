"""The conversation in the terminal: what was said, the commands, the line editor, the loop."""
