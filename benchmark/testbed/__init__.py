"""The embedded testbed: a drawn world, its captions, its oracle detectors and the training of its tiny pipeline."""
