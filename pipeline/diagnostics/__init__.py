"""What is measured on networks while they train, one measurement a file."""
