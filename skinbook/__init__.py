"""skinbook: the code behind a book on skin-lesion classification that measures its own claims.

A teaching tool, not a medical device. Importing the package is cheap: torch is imported where it is used.
"""

__version__ = "0.1.0"

import os as _os

# A thread that waits for the others shall sleep. torch's OpenMP threads spin otherwise, and beside any other busy program
# training then takes many times as long. OpenMP reads this once, when torch is imported: so it stands here.
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
