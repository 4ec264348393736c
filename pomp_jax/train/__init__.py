"""A training: setup, loop, what it watches, and how it resumes."""
