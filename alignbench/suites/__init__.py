"""Running many cells: each in a process of its own, on this machine or on a Ray cluster, with one table of states."""
