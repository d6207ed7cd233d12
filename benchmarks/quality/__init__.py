"""Does pyids pick better data? The same small model, trained on every selection."""
