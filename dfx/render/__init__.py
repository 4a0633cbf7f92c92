"""Recordings of any length through a trained model, and its automation as files."""
