"""Harmless proofs of concept: files that try to run code, to read or write other files, or to take
all memory. SECURITY.md names the advisories.
"""
