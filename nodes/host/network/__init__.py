"""What is done to a network while it is trained."""

from . import linear as linear  # what it says of the host's layers holds from here on
