"""What is learned, and by what: learning problems here, architectures in `tasks.networks`."""
