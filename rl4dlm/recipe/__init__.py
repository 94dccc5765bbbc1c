"""The recipe: what the user asked for, checked before anything starts. Imports neither torch nor `types`."""

from __future__ import annotations

from rl4dlm.recipe.loader import dump_resolved, find_recipe, list_recipes, load_recipe, shipped_folder
from rl4dlm.recipe.root import AnyRecipe, Recipe, SFTRecipe

__all__ = [
    "AnyRecipe",
    "Recipe",
    "SFTRecipe",
    "dump_resolved",
    "find_recipe",
    "list_recipes",
    "load_recipe",
    "shipped_folder",
]
