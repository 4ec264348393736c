"""One file per job; `config.job` names it, and config/registry.py lists all.

A job module has two functions. `check(config, workdir)` raises a one-line error for what can't
work and writes nothing; `run(config, workdir)` does it. With several processes all call both; from
`run` a process may return before the first one has written its files, but for the jobs that others
are made of (`pretrain`, `ablate`): `hosts.finish` waits for all.
"""
