"""python -m pfedsam.cli"""

import sys

from pfedsam.cli import main

sys.exit(main())
