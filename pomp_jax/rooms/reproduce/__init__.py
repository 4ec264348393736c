"""One command that says whether a table of the paper is reproduced, and what is to
blame if it is not."""
