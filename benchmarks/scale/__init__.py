"""Stage one at the size of a cluster: a simulation of its workers and store, around the real code that schedules."""
