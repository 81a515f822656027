"""The embedded default: a small real target, a DFlash drafter for it, and the recipe that trained it."""
