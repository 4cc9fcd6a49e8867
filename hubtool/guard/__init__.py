"""A child process held to a memory limit, watched from outside.

    command, Limits -> guard.run_guarded -> GuardReport     how it ended, and why it was stopped if it was
    pids            -> group             -> all that the child started, stopped and killed together
    pids            -> memory, cgroup    -> what the system charges them, and how hard pressed it is
    this machine    -> machine           -> what it is, without saying whose

Nothing here knows a model.
"""
