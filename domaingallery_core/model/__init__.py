"""The one view of a model, and its noise levels."""
