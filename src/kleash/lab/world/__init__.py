"""The small world: a tiny assistant domain in which the truth is known."""

from kleash.lab.world.small_world import World, gold

__all__ = ["World", "gold"]
