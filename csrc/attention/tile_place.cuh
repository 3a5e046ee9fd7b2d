// The tile of a sequence that a block works on, and the sequence's mask.
#pragma once

#include "attention/params.h"

namespace conan_fast {

struct TilePlace {
  int batch, first_token, length, begin;  // begin: the tile's first row within its sequence
};

template <int kTileRows>
__device__ inline TilePlace tile_place(const AttentionParams& p) {
  if (p.schedule != nullptr) {
    ScheduledTile tile = p.schedule[blockIdx.x];
    return {0, tile.first_token, tile.length, tile.tile * kTileRows};
  }
  int tiles = (p.tokens + kTileRows - 1) / kTileRows;
  int batch = static_cast<int>(blockIdx.x) / tiles;
  int tile = tiles - 1 - static_cast<int>(blockIdx.x) % tiles;  // under a causal mask the last rows have the most keys
  return {batch, 0, p.tokens, tile * kTileRows};
}

__device__ inline SoftMask soft_mask_of(const AttentionParams& p, int length) {
  return SoftMask(p.alpha_pointer != nullptr ? *p.alpha_pointer : p.alpha, length, p.saturation);
}

}  // namespace conan_fast
