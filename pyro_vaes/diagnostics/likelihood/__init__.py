"""log p(x): importance weights, annealing, gaps, code lengths."""
