"""Every tolerance of the suite, each with its reason. None is loosened to get a test green."""

# Two fp32 programs that sum the same terms in another order: relative to the largest gradient
# entry of the tensor (max|dg| <= 1e-5 max|g|).
GRADIENT_RTOL = 1e-5

# Advantages are computed in float64 and stored in float32, with |advantage| below 8.
ADVANTAGE_ATOL = 1e-6
