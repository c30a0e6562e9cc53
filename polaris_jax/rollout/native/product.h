// One panel of a product with packed weights.

#ifndef POLARIS_NATIVE_PRODUCT_H_
#define POLARIS_NATIVE_PRODUCT_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "lanes.h"

namespace polaris {

constexpr int kPanel = 32;          // Columns of a packed panel: PANEL_COLUMNS in __init__.py.
constexpr int64_t kDepth = 192;     // Rows of a panel, a block, that are used for all rows of x at once.
constexpr int64_t kAskers = 4;      // Tiles of a block that ask for memory; more would be slowed by it.
constexpr int64_t kStepBytes = kPanel * sizeof(float);  // Of a step, of either type.
constexpr int64_t kRowBlock = 240;  // Rows of x of one item, a multiple of any tile.

// How numbers of type T are multiplied: a step of depth takes kTerms of a column at once, and a panel
// holds them side by side.
template <typename T>
struct Terms;

template <>
struct Terms<float> {
  static constexpr int64_t kTerms = 1;
  typedef Vec Column;
  static Vec Add(Vec sum, const float* x, Column column) { return Fma(*x, column, sum); }
};

#if defined(__AVX512BF16__)
// Two products of bfloat16 numbers are added to a float.
template <>
struct Terms<Bfloat16> {
  static constexpr int64_t kTerms = 2;
  typedef __m512bh Column;
  static Vec Add(Vec sum, const Bfloat16* x, Column column) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof(pair));
    return (Vec)_mm512_dpbf16_ps((__m512)sum, column, (__m512bh)_mm512_set1_epi32(pair));
  }
};
#endif

// Memory that is asked for during a tile: `bytes` behind `from` for each step of it.
struct Ahead {
  const char* from;
  int64_t bytes;
};

// out[R, V vectors] (+)= x[R, depth] * panel[depth, V vectors of 32 columns], summed in the order of
// depth.
template <int R, int V, bool kAsks, typename T>
void Tile(const T* x, int64_t x_stride, const T* panel, int64_t depth, float* out,
          int64_t out_stride, bool add, Ahead ahead) {
  constexpr int64_t kTerms = Terms<T>::kTerms, kRow = kPanel * kTerms;
  Vec sum[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v)
      sum[r][v] = add ? Load(out + r * out_stride + v * kLanes) : Vec{};
  for (int64_t k = 0; k < depth / kTerms; ++k) {
    typename Terms<T>::Column column[V];
    for (int v = 0; v < V; ++v)
      std::memcpy(&column[v], panel + k * kRow + v * kLanes * kTerms, sizeof(column[v]));
    if constexpr (kAsks) {
      __builtin_prefetch(ahead.from);
      if (ahead.bytes > kLineBytes) __builtin_prefetch(ahead.from + kLineBytes);
      ahead.from += ahead.bytes;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        sum[r][v] = Terms<T>::Add(sum[r][v], x + r * x_stride + k * kTerms, column[v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) Store(out + r * out_stride + v * kLanes, sum[r][v]);
}

template <int R, bool kAsks, typename T>
void TileRows(int64_t rows, const T* x, int64_t x_stride, const T* panel, int64_t depth, float* out,
              int64_t out_stride, bool add, Ahead ahead) {
  if constexpr (R > 0) {
    if (rows == R) {
      // Few rows alone make too few sums to hide the latency of one.
      constexpr int kVecs = R <= kTileRows / 3 ? std::min(kPanel / kLanes, 2 * kTileVecs) : kTileVecs;
      constexpr int kPasses = kPanel / kLanes / kVecs;
      ahead.bytes = (ahead.bytes + kPasses - 1) / kPasses;
      for (int v = 0; v < kPanel / kLanes; v += kVecs) {
        Tile<R, kVecs, kAsks>(x, x_stride, panel + v * kLanes * Terms<T>::kTerms, depth,
                              out + v * kLanes, out_stride, add, ahead);
        ahead.from += depth / Terms<T>::kTerms * ahead.bytes;
      }
    } else {
      TileRows<R - 1, kAsks>(rows, x, x_stride, panel, depth, out, out_stride, add, ahead);
    }
  }
}

// One panel's columns for some rows of x; row r of the product is row at[r] of `out`, r if `at` is
// null. While a block of the panel is used, the next one is asked for, evenly over the block's tiles:
// the hardware does not look that far ahead, and memory and sums would take turns.
template <typename T>
void Panel(const T* x, int64_t rows, int64_t width, const T* panel, float* out, int64_t out_stride,
           int64_t columns, const int32_t* at) {
  // Tiles whose rows lie apart go through a buffer. So do those of a last panel that reaches beyond
  // the product.
  float buffer[kTileRows * kPanel];
  const bool direct = columns == kPanel && !at;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows, askers = std::min(kAskers, tiles);
  for (int64_t from = 0; from < width; from += kDepth) {
    const int64_t depth = std::min(kDepth, width - from);
    const char* next = reinterpret_cast<const char*>(panel + (from + depth) * kPanel);
    const int64_t bytes = depth * kPanel * sizeof(T);
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const int64_t tile = std::min<int64_t>(kTileRows, rows - r), nth = r / kTileRows;
      const bool asks = nth < askers;
      const auto rows_of = asks ? TileRows<kTileRows, true, T> : TileRows<kTileRows, false, T>;
      const Ahead ahead = {next + nth * bytes / askers, (kStepBytes + askers - 1) / askers};
      const auto to = [&](int64_t i) { return out + (at ? at[r + i] : r + i) * out_stride; };
      if (direct) {
        rows_of(tile, x + r * width + from, width, panel + from * kPanel, depth, to(0), out_stride,
                from > 0, ahead);
        continue;
      }
      for (int64_t i = 0; i < tile; ++i)
        std::memcpy(buffer + i * kPanel, to(i), columns * sizeof(float));
      rows_of(tile, x + r * width + from, width, panel + from * kPanel, depth, buffer, kPanel,
              from > 0, ahead);
      for (int64_t i = 0; i < tile; ++i)
        std::memcpy(to(i), buffer + i * kPanel, columns * sizeof(float));
    }
  }
}

}  // namespace polaris

#endif  // POLARIS_NATIVE_PRODUCT_H_
