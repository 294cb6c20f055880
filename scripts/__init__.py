"""Scripts that write stored scores and the picture of the architecture."""
