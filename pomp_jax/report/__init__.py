"""Reports of runs: one model of text, tables and plots, and how it is written."""
