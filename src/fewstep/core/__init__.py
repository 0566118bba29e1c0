"""What every wing of the house stands on: files, seeds, receipts, counted network calls."""
