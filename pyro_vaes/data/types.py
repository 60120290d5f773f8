"""Shapes, sizes and ranges, as functions of the data room take them."""

ImageShape = tuple[int, int, int]
"""Channels, height and width of one image."""
Size = int | tuple[int, int]
"""Height and width in pixels; one number stands for both."""
SplitSizes = tuple[float | int, float | int]
"""The validation and the test part, each as a fraction or a count."""
ValueRange = tuple[float, float]
"""The least and the greatest value that pixels can have."""
