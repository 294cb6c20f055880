"""Scorers around a scorer: windows over long passages, and a score cache."""
