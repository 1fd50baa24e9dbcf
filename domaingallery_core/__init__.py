"""The DomainGallery method, independent of any host."""
