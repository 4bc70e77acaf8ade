"""Network calculus: arrival curves, service curves, delay and backlog bounds. Pure."""
