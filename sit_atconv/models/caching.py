"""diffusers' caches for models of `SiTBlock`s: blocks reuse what they computed in earlier network calls."""

from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.cache_utils import CacheMixin

from .hooks import has_diffusers_hooks
from .sit_block import SiTBlock

# Others keep a single state for all numbers of rows, skip attention alone, or are made for text or video.
BLOCK_CACHES = ("FirstBlockCacheConfig", "MagCacheConfig", "TaylorSeerCacheConfig")
TAYLOR_LAYERS = [r"blocks\.\d+\.(mixer|mlp)"]
# With few network calls neighbouring ones differ too much for a cache to gain much (docs/samplers.md).
FEW_CACHED_CALLS = 20


class BlockCacheMixin(CacheMixin):
    """Those caches that work with every mixer, whatever the number of rows in a call."""

    def enable_cache(self, config) -> None:
        """Let blocks reuse what they computed in earlier network calls, as one of diffusers' caches decides.

        The pipeline forgets it before each solve.

        Args:
            config: a `FirstBlockCacheConfig`, `MagCacheConfig` or `TaylorSeerCacheConfig` of diffusers, such as
                `FirstBlockCacheConfig(threshold=0.05)`.

        Raises:
            ValueError: for another kind of cache, one that finds no layer to apply to, or one that reuses what many
                blocks add together, in an hourglass, whose blocks see tokens of two resolutions.
        """
        if (name := type(config).__name__) not in BLOCK_CACHES:
            raise ValueError(
                f"config={name} is not for the blocks of this model; use {', '.join(BLOCK_CACHES[:-1])} or "
                f"{BLOCK_CACHES[-1]}"
            )
        if self.config.middle_layers and name != "TaylorSeerCacheConfig":
            raise ValueError(
                f"config={name} skips blocks as if their tokens were of one resolution, but this model has "
                f"middle_layers={self.config.middle_layers}; use TaylorSeerCacheConfig"
            )
        for kind in {SiTBlock, *map(type, self.get_submodule("blocks").children())}:  # some may be left out
            TransformerBlockRegistry.register(kind, TransformerBlockMetadata(return_hidden_states_index=0))
        super().enable_cache(config)
        if not any(has_diffusers_hooks(module) for module in self.modules()):
            self.disable_cache()
            raise ValueError(f"config={name} names no layer of this model; give cache_identifiers={TAYLOR_LAYERS!r}")
