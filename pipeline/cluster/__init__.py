"""Ray in a process of its own, on this machine or on a cluster.

`connection.py` starts that process and receives its events. In it, `start.py` starts Ray closed to others, with the
variables of `environment.py` and the folder of `temporary.py`. Two things run there: jobs of stages (`pool.py` here,
`tasks.py` there), and trials (`pipeline.sweeping.engine`, and `pipeline.sweeping.tune` there).
"""
