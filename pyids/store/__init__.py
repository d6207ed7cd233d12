"""The run folder: files, ledger, shards, rounds, manifest."""
