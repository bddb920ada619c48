"""Engines run units of work on workers elsewhere: on a Ray cluster, or as jobs of Slurm."""
