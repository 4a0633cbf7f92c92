"""Rendering of recordings of any length with a trained model, and its automation as files."""
