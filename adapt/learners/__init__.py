"""Learners: one method, one file."""
