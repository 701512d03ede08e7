"""Shamir's shares of a secret (1979): any `least` of them give it back, fewer say nothing about it."""

from collections.abc import Callable, Mapping

PRIME = 2**521 - 1  # a Mersenne prime; the field that the shares are in
SHARE = 66  # bytes of a share
SECRET = 32  # bytes of a secret


def split(secret: bytes, count: int, *, least: int, draw: Callable[[int], bytes]) -> list[bytes]:
    """`count` shares of a secret of 32 bytes, for the places 1 to `count`.

    Args:
        draw: gives so many random bytes.
    """
    line = [int.from_bytes(secret), *(int.from_bytes(draw(2 * SHARE)) % PRIME for _ in range(least - 1))]
    return [_at(line, place).to_bytes(SHARE) for place in range(1, count + 1)]


def join(shares: Mapping[int, bytes]) -> bytes | None:
    """The secret of which these are shares, by place. None if there is no such secret.

    If a share is wrong, or too few are given, the result is another secret or None.
    """
    total = 0
    for place, share in shares.items():
        over = under = 1
        for other in shares.keys() - {place}:
            over, under = over * other % PRIME, under * (other - place) % PRIME
        total += int.from_bytes(share) * over * pow(under, -1, PRIME)
    found = total % PRIME
    return found.to_bytes(SECRET) if found < 1 << 8 * SECRET else None


def _at(line: list[int], place: int) -> int:
    """The polynomial's value at a place, by Horner's rule."""
    value = 0
    for factor in reversed(line):
        value = (value * place + factor) % PRIME
    return value
