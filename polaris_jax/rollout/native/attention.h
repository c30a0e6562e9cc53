// One row's query over its pages and the tokens staged beside them. Keys and values are floats or
// bfloat16 numbers; all sums are floats.

#ifndef POLARIS_NATIVE_ATTENTION_H_
#define POLARIS_NATIVE_ATTENTION_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "lanes.h"

namespace polaris {

// exp of numbers <= 0 to 2 units in the last place; from -87 down it is 0. NaN stays NaN, so that a
// broken key or query shows in the output.
inline Vec Exp(Vec x) {
  const Vec turns = x * 1.44269504088896341f;
  // Rounds to the nearest integer: the sum leaves no room for a fraction.
  constexpr float kRound = 12582912.0f;
  const Vec shifted = turns + kRound;
  const Vec whole = shifted - kRound;
  const Vec rest = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  Vec value = Splat(1.9875691500e-4f);
  value = value * rest + 1.3981999507e-3f;
  value = value * rest + 8.3334519073e-3f;
  value = value * rest + 4.1665795894e-2f;
  value = value * rest + 1.6666665459e-1f;
  value = value * rest + 5.0000001201e-1f;
  value = value * rest * rest + rest + 1.0f;
  typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
  // Casts between vectors of one size keep the bits.
  const Vec power = (Vec)(((Ints)shifted - 0x4B400000 + 127) << 23);
  return x <= -87.0f ? Vec{} : value * power;
}

// scores[g][i] = sum over h of q[g][h] * keys[h][i], for C vectors of tokens, which may lie in several
// pages: one vector alone makes too few sums to hide the latency of one. A key's row has `stride`
// tokens.
template <int G, int C, typename V, typename T>
void ScoresOf(const float* q, int64_t width, const T* const (&keys)[C], int64_t stride,
              float* scores, int64_t scores_stride) {
  constexpr int kWidth = sizeof(V) / sizeof(float);
  V sum[C][G] = {};
  for (int64_t h = 0; h < width; ++h)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const V key = Load<V>(keys[c] + h * stride);
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) sum[c][g] = Fma(q[g * width + h], key, sum[c][g]);
    }
  for (int c = 0; c < C; ++c)
    for (int g = 0; g < G; ++g) Store(scores + g * scores_stride + c * kWidth, sum[c][g]);
}

// `ScoresOf` for `count` tokens side by side. Those behind them may be read, and as many scores
// written, up to kLanes - 1.
template <int G, typename T>
void Scores(const float* q, int64_t width, const T* keys, int64_t stride, int64_t count,
            float* scores, int64_t scores_stride) {
  for (int64_t i = 0; i < count;)
    i += WithLanes(stride - i, [&](auto lanes) {
      const T* const at[] = {keys + i};
      ScoresOf<G, 1, Lanes<lanes>>(q, width, at, stride, scores + i, scores_stride);
    });
}

// out[g][h] += sum over i of weights[g][i] * values[i][h], for C vectors of h.
template <int G, int C, typename V, typename T>
void GainOf(const float* weights, int64_t weights_stride, const T* values, int64_t count,
            int64_t width, float* out) {
  constexpr int kWidth = sizeof(V) / sizeof(float);
  V sum[G][C];
  for (int g = 0; g < G; ++g)
    for (int c = 0; c < C; ++c) sum[g][c] = Load<V>(out + g * width + c * kWidth);
  for (int64_t i = 0; i < count; ++i) {
    V value[C];
    for (int c = 0; c < C; ++c) value[c] = Load<V>(values + i * width + c * kWidth);
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c)
        sum[g][c] = Fma(weights[g * weights_stride + i], value[c], sum[g][c]);
  }
  for (int g = 0; g < G; ++g)
    for (int c = 0; c < C; ++c) Store(out + g * width + c * kWidth, sum[g][c]);
}

// `GainOf` for all h.
template <int G, typename T>
void Gain(const float* weights, int64_t weights_stride, const T* values, int64_t count,
          int64_t width, float* out) {
  constexpr int kVecs = std::clamp(kSums / G, 1, 4);
  int64_t h = 0;
  for (; h + kVecs * kLanes <= width; h += kVecs * kLanes)
    GainOf<G, kVecs, Vec>(weights, weights_stride, values + h, count, width, out + h);
  while (h < width)
    h += WithLanes(width - h, [&](auto lanes) {
      GainOf<G, 1, Lanes<lanes>>(weights, weights_stride, values + h, count, width, out + h);
    });
}

// Asks for numbers that are used soon. Pages lie anywhere, so the hardware cannot foresee them.
template <typename T>
void Prefetch(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += kLineBytes / sizeof(T)) __builtin_prefetch(from + i, 0, 2);
}

// What the threads share of one call.
template <typename T>
struct Rows {
  const float* q;
  const T *k_pages, *v_pages, *k_staged, *v_staged;
  const int32_t *cached, *table;
  int64_t num_kv, width, page, pages_of_row, staged, steps, first_page;
};

// Some queries of a KV head of row b: scores of all its tokens, their softmax, the weighted values.
template <int G, typename T>
void Attend(const Rows<T>& rows, int64_t b, int64_t kv, const float* q, float* out,
            std::vector<float>& buffer) {
  const int64_t width = rows.width, page = rows.page, head = page * width;
  const int64_t cached = rows.cached[b], tokens = cached + rows.steps;
  const int64_t whole = (tokens + kLanes - 1) / kLanes * kLanes;
  const int64_t stride = whole + kLanes;  // room for scores behind the last
  buffer.resize(G * stride + G * width);
  float* scores = buffer.data();
  float* scaled = scores + G * stride;
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  for (int64_t i = 0; i < G * width; ++i) scaled[i] = q[i] * scale;
  const auto page_at = [&](int64_t i) {
    const int64_t z = rows.first_page + rows.table[b * rows.pages_of_row + i / page];
    return (z * rows.num_kv + kv) * head;
  };
  const int64_t staged_at = (b * rows.num_kv + kv) * rows.staged * width;
  int64_t scored = 0;
  if (page % kLanes == 0) {
    constexpr int kVecs = std::clamp(kSums / G, 1, 4);
    for (; scored + kVecs * kLanes <= cached; scored += kVecs * kLanes) {
      const T* keys[kVecs];
      for (int c = 0; c < kVecs; ++c) {
        const int64_t at = scored + c * kLanes, ahead = at + kVecs * kLanes;
        keys[c] = rows.k_pages + page_at(at) + at % page;
        if (ahead < cached && ahead % page == 0) Prefetch(rows.k_pages + page_at(ahead), head);
      }
      ScoresOf<G, kVecs, Vec>(scaled, width, keys, page, scores + scored, stride);
    }
  }
  for (int64_t i = scored, end; i < cached; i = end) {
    end = i / page * page + page;
    if (end < cached) Prefetch(rows.k_pages + page_at(end), head);
    Scores<G>(scaled, width, rows.k_pages + page_at(i) + i % page, page, std::min(end, cached) - i,
              scores + i, stride);
  }
  Scores<G>(scaled, width, rows.k_staged + staged_at, rows.staged, rows.steps, scores + cached,
            stride);
  float norm[G];
  for (int g = 0; g < G; ++g) {
    float* score = scores + g * stride;
    for (int64_t i = tokens; i < whole; ++i) score[i] = -std::numeric_limits<float>::infinity();
    Vec top = Load(score);
    for (int64_t i = kLanes; i < whole; i += kLanes) {
      const Vec other = Load(score + i);
      top = top > other ? top : other;
    }
    float highest = top[0];
    for (int i = 1; i < kLanes; ++i) highest = std::max(highest, top[i]);
    Vec sum = {};
    for (int64_t i = 0; i < whole; i += kLanes) {
      const Vec weight = Exp(Load(score + i) - highest);
      Store(score + i, weight);
      sum += weight;
    }
    norm[g] = 0;
    for (int i = 0; i < kLanes; ++i) norm[g] += sum[i];
  }
  std::fill(out, out + G * width, 0.0f);
  for (int64_t i = 0; i < cached; i += page) {
    if (i + page < cached) Prefetch(rows.v_pages + page_at(i + page), head);
    Gain<G>(scores + i, stride, rows.v_pages + page_at(i), std::min(page, cached - i), width, out);
  }
  Gain<G>(scores + cached, stride, rows.v_staged + staged_at, rows.steps, width, out);
  for (int g = 0; g < G; ++g)
    for (int64_t h = 0; h < width; ++h) out[g * width + h] /= norm[g];
}

template <int G, typename T>
void AttendGroup(int64_t group, const Rows<T>& rows, int64_t b, int64_t kv, const float* q,
                 float* out, std::vector<float>& buffer) {
  if constexpr (G > 0) {
    if (group == G)
      Attend<G>(rows, b, kv, q, out, buffer);
    else
      AttendGroup<G - 1>(group, rows, b, kv, q, out, buffer);
  }
}

}  // namespace polaris

#endif  // POLARIS_NATIVE_ATTENTION_H_
