"""Everything that yields batches."""
