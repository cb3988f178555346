"""Recipes: YAML read strictly, overridden, checked as a whole, before any weight is made."""
