"""Clients of language models: the protocol, its implementations, and the factory that creates one."""
