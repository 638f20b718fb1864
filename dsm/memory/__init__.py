"""Memory of the cluster as numbers: which addresses are given to whom.  Pure: maps nothing."""
