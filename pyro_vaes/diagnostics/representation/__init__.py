"""What codes are good for: classes, clusters, images."""
