"""What is looked at before any training, and said in words."""
