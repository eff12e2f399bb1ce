"""Weights on their way onto this machine: pulled from the hub, imported from a folder, verified, removed."""
