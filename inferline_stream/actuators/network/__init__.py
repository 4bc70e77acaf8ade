"""A pool over several machines: each process has a host beside it, and the hosts carry frames over TLS.

A host is the parent of one dispatcher or replica, which keeps the pair of sockets that it has on one machine. Only
hosts hold keys and connections, so that a replica is sealed before its first batch, and outlives its dispatcher.
"""
