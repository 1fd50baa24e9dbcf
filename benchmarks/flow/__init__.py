"""A small flow transformer of the sketchbook's world: the model, its training, and the method on it."""
