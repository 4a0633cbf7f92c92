"""Measurements that compare two things in one run."""
