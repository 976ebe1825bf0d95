"""Rules that end a run before its last step."""

from kleash.stopping.degenerate import DegenerateRun, GroupScores, zero_spread
from kleash.stopping.kl_budget import KLBudget
from kleash.stopping.plateau import Plateau
from kleash.stopping.rule import StopRule, StopRules

__all__ = ["DegenerateRun", "GroupScores", "KLBudget", "Plateau", "StopRule", "StopRules", "zero_spread"]
