"""What erasers and attacks share, each written once."""
