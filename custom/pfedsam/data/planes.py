"""The planes that a volume can be cut into; imports nothing, so that a verb can name them at its start."""

PLANES = {  # where rows, columns and slices lead to, as a viewer of DICOM shows the plane
    "axial": ("P", "L", "S"),
    "coronal": ("I", "L", "P"),
    "sagittal": ("I", "P", "L"),
}
STORED = "stored"  # along the last axis as it lies
CHOICES = (*PLANES, STORED)
ENDS = {"P": "posterior", "L": "the patient's left", "S": "superior", "I": "inferior"}


def described(plane: str) -> str:
    """How volumes are cut into slices, in words."""
    if plane == STORED:
        return "volumes are cut along their last axis as stored"
    rows, columns, slices = (ENDS[code] for code in PLANES[plane])
    return f"volumes are cut into {plane} slices: rows run to {rows}, columns to {columns}, slices to {slices}"
