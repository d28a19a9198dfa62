"""skinbook: the code behind a book on skin-lesion classification that measures its own claims.

A teaching tool, not a medical device. Importing the package is cheap: torch is imported where it is used.
"""

__version__ = "0.1.0"
