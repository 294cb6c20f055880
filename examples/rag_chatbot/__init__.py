"""A chatbot over your own files, and a playground for rerankers, in one web page.

Start it with `make chat`, or `PYTHONPATH=examples python -m rag_chatbot`; see docs/chatbot.md.
"""
