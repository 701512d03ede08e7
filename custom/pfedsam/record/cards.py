"""Model cards: a few lines beside each saved model that say what it is and what it is not."""

from pfedsam.config import Config

USE = "Research use; not a medical device. Test it on your own data before you rely on it."


def shared_card(config: Config, facts: dict[str, str]) -> str:
    """The card of the shared part."""
    what = "LoRA and mask decoder, averaged over sites. Needs its base model; holds no expert."
    return _card("Shared part", config, facts, what)


def private_card(config: Config, facts: dict[str, str], site: str) -> str:
    """The card of one site's private part."""
    what = f"Private part of site {site}: experts or copies, by method. Stays at the site; needs shared part and base."
    return _card("Private part", config, facts, what)


def _card(title: str, config: Config, facts: dict[str, str], what: str) -> str:
    data = "synthetic images" if config.data.source == "synthetic" else "the sites' own images"
    own = "".join(f", {name} {value}" for name, value in vars(config.method_settings).items())
    lines = [
        f"# {title}",
        "",
        what,
        "",
        f"- method: {config.method}{own}; seed {config.seed}",
        f"- backbone: {config.model.backbone} at {config.model.image_size} px, {config.model.num_classes} class(es)",
        f"- trained on: {data}, study {config.study}",
        *(f"- {key}: {value}" for key, value in facts.items()),
        f"- {USE}",
        "",
    ]
    return "\n".join(lines)
