"""The doctor's trial in a process that holds what a site's job process holds."""

from pfedsam.doctor.trial import main
from pfedsam.flare import executor

assert executor  # imported for what it weighs

if __name__ == "__main__":
    main()
