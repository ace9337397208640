"""Building blocks that methods and attacks share."""
