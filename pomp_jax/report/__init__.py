"""Reports of runs: one model of text, tables and plots, and its writers.

Jobs build a `Report` and pass it to `run_report.finish_run`. Start with `report`, which
holds the model; `plots` and `drawing` make its pictures.
"""
