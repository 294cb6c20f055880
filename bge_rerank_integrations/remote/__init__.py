"""Rerankers on other machines: many protocols as values, and one client that checks answers."""
