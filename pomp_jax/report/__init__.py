"""Analysis of runs: feature geometry, gradient bias, tables, plots and reports."""
