"""What outlives a run: prompt files, checkpoints, stored features, results, the log.

Every job writes through it, atomically and with checksums, to a disk or a bucket. Start
with `run_folder`, which names a run's files, and `pieces`, the store of finished work.
"""
