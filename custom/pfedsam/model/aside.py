"""What a method trains at a site beside the branches, such as a discriminator. Predicting never needs it."""

from torch import nn


class Aside(nn.Module):
    """Holds a small network or a vector of the site's own. Its type gives all its parameters one kind.

    Args:
        net: what is trained.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
