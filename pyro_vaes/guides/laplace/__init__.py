"""The Laplace guide: Newton steps to the mode, and the curvature there."""
