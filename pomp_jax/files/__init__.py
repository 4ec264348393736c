"""Files that outlive a run: prompts, checkpoints, stored features, results, the log.

Every job writes through this package, atomically and with checksums, to a disk or a
bucket. Start with `run_folder`, which names a run's files, and with `pieces`, the store
of finished work.
"""
