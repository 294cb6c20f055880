"""The foundation: checked pairs and scores, deadlines, traces, addresses and the model table."""
