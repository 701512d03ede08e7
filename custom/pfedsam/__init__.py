"""Personalised federated fine-tuning of the Segment Anything Model, as an NVIDIA FLARE bundle."""

import logging

__version__ = "0.1.0"

log = logging.getLogger("pfedsam")
