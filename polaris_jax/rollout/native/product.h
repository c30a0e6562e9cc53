// One panel of a product with packed weights.

#ifndef POLARIS_NATIVE_PRODUCT_H_
#define POLARIS_NATIVE_PRODUCT_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace polaris {

constexpr int kPanel = 32;          // Columns of a packed panel: PANEL_COLUMNS in ops.py.
constexpr int64_t kDepth = 512;     // Rows of a panel that are used for all rows of x at once.
constexpr int64_t kAhead = 64;      // Rows of a panel that are asked for ahead of use: 8 KiB.
constexpr int64_t kRowBlock = 240;  // Rows of x of one item, a multiple of any tile.

// out[R, V vectors] (+)= x[R, depth] * panel[depth, V vectors of 32 columns], summed in the order of
// depth. The tile that meets a panel first asks for what comes behind (kFirst): the hardware alone
// does not look far enough ahead for memory and sums to overlap.
template <int R, int V, bool kFirst>
void Tile(const float* x, int64_t x_stride, const float* panel, int64_t depth, float* out,
          int64_t out_stride, bool add) {
  Vec sum[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v)
      sum[r][v] = add ? Load(out + r * out_stride + v * kLanes) : Vec{};
  for (int64_t k = 0; k < depth; ++k) {
    Vec column[V];
    for (int v = 0; v < V; ++v) column[v] = Load(panel + k * kPanel + v * kLanes);
    if constexpr (kFirst)
      for (int i = 0; i < V * kLanes; i += kLine)
        __builtin_prefetch(panel + (k + kAhead) * kPanel + i);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const float scale = x[r * x_stride + k];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = Fma(scale, column[v], sum[r][v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) Store(out + r * out_stride + v * kLanes, sum[r][v]);
}

template <int R, bool kFirst>
void TileRows(int64_t rows, const float* x, int64_t x_stride, const float* panel, int64_t depth,
              float* out, int64_t out_stride, bool add) {
  if constexpr (R > 0) {
    if (rows == R) {
      // Few rows alone make too few sums to hide the latency of one.
      constexpr int kVecs = R <= kTileRows / 3 ? std::min(kPanel / kLanes, 2 * kTileVecs) : kTileVecs;
      for (int v = 0; v < kPanel / kLanes; v += kVecs)
        Tile<R, kVecs, kFirst>(x, x_stride, panel + v * kLanes, depth, out + v * kLanes, out_stride,
                               add);
    } else {
      TileRows<R - 1, kFirst>(rows, x, x_stride, panel, depth, out, out_stride, add);
    }
  }
}

// One panel's columns for some rows of x.
inline void Panel(const float* x, int64_t rows, int64_t width, const float* panel, float* out,
                  int64_t out_stride, int64_t columns) {
  // The last panel may reach beyond the product; its tiles go through a buffer.
  float buffer[kTileRows * kPanel];
  const bool whole = columns == kPanel;
  for (int64_t from = 0; from < width; from += kDepth) {
    const int64_t depth = std::min(kDepth, width - from);
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const int64_t tile = std::min<int64_t>(kTileRows, rows - r);
      const auto rows_of = r == 0 ? TileRows<kTileRows, true> : TileRows<kTileRows, false>;
      float* to = out + r * out_stride;
      if (whole) {
        rows_of(tile, x + r * width + from, width, panel + from * kPanel, depth, to, out_stride,
                from > 0);
        continue;
      }
      for (int64_t i = 0; i < tile; ++i)
        std::memcpy(buffer + i * kPanel, to + i * out_stride, columns * sizeof(float));
      rows_of(tile, x + r * width + from, width, panel + from * kPanel, depth, buffer, kPanel,
              from > 0);
      for (int64_t i = 0; i < tile; ++i)
        std::memcpy(to + i * out_stride, buffer + i * kPanel, columns * sizeof(float));
    }
  }
}

}  // namespace polaris

#endif  // POLARIS_NATIVE_PRODUCT_H_
