"""Home-based lazy release consistency: many writers, twins and diffs, intervals and write notices."""
