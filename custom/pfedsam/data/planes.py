"""The planes in which volumes can be cut. Nothing is imported here, so that verbs start fast."""

PLANES = {  # the directions of rows, columns and slices, as a DICOM viewer shows the plane
    "axial": ("P", "L", "S"),
    "coronal": ("I", "L", "P"),
    "sagittal": ("I", "P", "L"),
}
STORED = "stored"  # along the last axis of the file
CHOICES = (*PLANES, STORED)
ENDS = {"P": "posterior", "L": "the patient's left", "S": "superior", "I": "inferior"}


SCALES = {  # how intensities become 0..1, in words
    "uint8": "values of 0 to 255 are divided by 255",
    "percentile": "from the 0.5 to the 99.5 percentile of the whole image or volume, cut at 0 and 1",
}


def described(plane: str) -> str:
    """How volumes are cut into slices, in words."""
    if plane == STORED:
        return "volumes are cut along their last axis as stored"
    rows, columns, slices = (ENDS[code] for code in PLANES[plane])
    return f"volumes are cut into {plane} slices: rows run to {rows}, columns to {columns}, slices to {slices}"
