"""Pick, out of a huge instruction data set, the small subset that trains the better model."""
