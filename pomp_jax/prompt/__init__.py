"""The method: a soft prompt, local contrast with local correction, and the step that learns it.

Pure functions over arrays and a Flax module; nothing here reads or writes a file.
"""
