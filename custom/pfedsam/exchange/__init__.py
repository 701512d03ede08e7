"""Exchange: what leaves a site and how it is judged; pure, no FLARE."""
