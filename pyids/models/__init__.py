"""Language models: found, loaded, fine-tuned, scored, asked."""
