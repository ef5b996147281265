"""Several sweeps side by side: each judged alone, then compared; trials are never pooled."""
