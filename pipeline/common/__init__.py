"""Shared by all libraries: errors, files, commands, metrics, statistics, hardware, the digest of code."""
