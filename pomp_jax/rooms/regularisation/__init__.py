"""Keeps a prompt near the words that it replaces: by its start, its loss, its average.

A training reaches this room through `hooks`. The room's fields extend those of the
prompt, the contrast and the optimizer. Start with `words`, which chooses the words and
compares the trained prompt with them.
"""
