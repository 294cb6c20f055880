"""From texts to sequences of token ids, for each model family."""
