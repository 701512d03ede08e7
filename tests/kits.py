"""Startup kits as FLARE's provisioning makes them, with the dates that a test needs."""

import datetime
from pathlib import Path

from nvflare.lighter.utils import Identity, generate_cert, generate_keys, serialize_cert, serialize_pri_key


class Project:
    """A project's root, which issues certificates to parties."""

    def __init__(self, name: str = "pfedsam", days: int = 1825) -> None:
        self.identity = Identity(name)
        self.key, public = generate_keys()
        self.root = generate_cert(self.identity, self.identity, self.key, public, ca=True, **_dates(days))

    def kit(self, folder: Path, name: str, *, days: int = 360, file: str = "client") -> Path:
        """A kit of the party `name` whose certificate ends `days` from today."""
        key, public = generate_keys()
        own = generate_cert(Identity(name, "hub"), self.identity, self.key, public, **_dates(days))
        startup = folder / "startup"
        startup.mkdir(parents=True)
        (startup / f"{file}.crt").write_bytes(serialize_cert(own))
        (startup / f"{file}.key").write_bytes(serialize_pri_key(key))
        (startup / "rootCA.pem").write_bytes(serialize_cert(self.root))
        return folder


def _dates(days: int) -> dict[str, datetime.datetime]:
    """A term that began long ago and ends an hour after `days` from the present."""
    now, begin, end = datetime.datetime.now(datetime.UTC), datetime.timedelta(400), datetime.timedelta(days, 3600)
    return {"not_valid_before": now - begin, "not_valid_after": now + end}
