"""The small world: a tiny assistant domain in which the truth is known."""

from kleash.lab.world.world import World, gold

__all__ = ["World", "gold"]
