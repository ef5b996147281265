"""Where cohorts are trained: in this process, or by Ray workers. One protocol for both."""
