"""What this process and the others rank."""

TEXTS = ["Water boils at 100 degrees.", "A panda is a bear.", "The capital of France is Paris."]
QUERY = "what is a panda?"
