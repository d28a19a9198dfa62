"""skinbook: the code behind a book on skin-lesion classification that measures its own claims.

A teaching tool, not a medical device. Importing the package is cheap: torch is imported where it is used.
"""

__version__ = "0.1.0"

import os as _os

# torch's OpenMP threads wait for each other by spinning, and beside a few busy programs a training then takes many times as
# long; threads that sleep at once make it slower where nobody else wants the core. So they spin for a short while, and
# then sleep (`skinbook bench --parts company` measures it). OpenMP reads this once, when torch is imported: hence here.
if "OMP_WAIT_POLICY" not in _os.environ:
    _os.environ.setdefault("GOMP_SPINCOUNT", "1000")
