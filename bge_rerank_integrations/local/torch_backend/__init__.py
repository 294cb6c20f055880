"""Forward passes on torch."""
