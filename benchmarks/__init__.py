"""Measurements that the README and the documentation quote. Each is one command."""
