"""Images and label maps: reading, writing, geometry, slices."""
