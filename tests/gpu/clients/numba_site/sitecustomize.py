"""For every Python process of numba-cuda's suite: a name that the package asks NumPy for and NumPy 2.5 has dropped.

It was another name for vstack. Both runs, plain and under emuV, get it.
"""

import numpy

if not hasattr(numpy, "row_stack"):
    numpy.row_stack = numpy.vstack
