"""`python -m bge_rerank_integrations.cli`."""

from bge_rerank_integrations.cli import main

main()
