"""Exchange: what leaves a site and how it is judged. Pure, without FLARE."""
