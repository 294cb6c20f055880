"""Scorers that wrap a scorer: windows over long passages, and a score cache."""
