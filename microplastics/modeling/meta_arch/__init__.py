"""Meta-architectures registered with Detectron2."""

from microplastics.modeling.meta_arch.semantic import ParticleSegmentor

__all__ = ["ParticleSegmentor"]
