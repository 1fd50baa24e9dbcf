"""Images as a training reads them."""
