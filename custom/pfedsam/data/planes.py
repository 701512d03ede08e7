"""The planes that a volume can be cut into; imports nothing, so that a verb can name them at its start."""

PLANES = {  # where rows, columns and slices lead to, as a viewer of DICOM shows the plane
    "axial": ("P", "L", "S"),
    "coronal": ("I", "L", "P"),
    "sagittal": ("I", "P", "L"),
}
STORED = "stored"  # along the last axis as it lies
CHOICES = (*PLANES, STORED)
