"""Imported by the server of processes alone: what a cluster tells a job's main process is not for its tasks.

Before a job is preempted or out of time, Slurm sends a signal to every process of it, and to those that don't expect it
that is the end.
"""

import signal

signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
