"""What every method is compared with: `real` (the floor), `gaussian` (the ceiling) and `upsample` (a 64-px LDM, enlarged)."""

from methods.baselines.gaussian import Gaussian
from methods.baselines.real import Real
from methods.baselines.upsample import Upsample

__all__ = ["Gaussian", "Real", "Upsample"]
