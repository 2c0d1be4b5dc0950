"""Visual autoregressive image generation: tokenizers, next-scale transformers, one sampling loop."""

__version__ = "0.1.0"
