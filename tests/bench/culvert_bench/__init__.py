"""Culvert beside what a user would pick instead, over the same topology, in the same run."""
