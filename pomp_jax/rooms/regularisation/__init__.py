"""What keeps a prompt near the words that it replaces: its start, its loss, its average.

A training reaches it through `hooks`; its fields extend those of the prompt, the
contrast and the optimizer. Start with `words`, which chooses the words and compares the
result with them.
"""
