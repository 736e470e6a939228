"""Review of a run by people: decisions, corrected outlines, and what follows from them."""

from microplastics.review.session import Conflict, Particle, Review, ReviewImage

__all__ = ["Conflict", "Particle", "Review", "ReviewImage"]
