"""The method as pure functions over arrays: a soft prompt, local contrast, the
training step."""
