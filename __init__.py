"""DomainGallery: teach an image model a visual domain from about ten images."""

from importlib.util import find_spec

if __package__ and find_spec("comfy_api"):  # a test runner imports this file too, without a host
    from .nodes import comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

WEB_DIRECTORY = "./web"
