"""How a replica restricts itself before its first record."""
