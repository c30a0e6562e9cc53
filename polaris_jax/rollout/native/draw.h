// A token of each row: programs/draw.py's rule, to the bit of what XLA makes of it.
//
// The masses exp((logit - top) / temperature) are never stored. Blocks of the vocabulary are summed
// by all threads, and only the masses of the block that a token falls into are computed again.
//
// Which token a uniform number falls on hangs on the last bit of a running sum over the vocabulary:
// sums in another order would change a token in some thousand draws. So exp and the sums follow
// XLA's CPU code: its polynomial, its 16 sums side by side, its prefix sums in runs of 16.

#ifndef POLARIS_NATIVE_DRAW_H_
#define POLARIS_NATIVE_DRAW_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "lanes.h"

namespace polaris {

constexpr int64_t kSideBySide = 16;              // Sums of a reduction, on any CPU.
constexpr int64_t kLeaf = 4 * kSideBySide;       // Masses added to one another before all others.
constexpr int64_t kBranch = 4 * kLeaf;           // Leaves added to one another.
constexpr int64_t kChunk = 4 * kBranch;          // Added to the total with a correction.
constexpr int64_t kDrawPart = 16 * kChunk;       // Of one row, an item of a thread.
constexpr int64_t kMinDrawn = 1 << 16;           // Logits; less is not worth another thread.
constexpr int64_t kRun = 16;                     // Of prefix sums.
constexpr int kDrawVecs = kSideBySide / kLanes;  // Registers of the sums side by side.

// XLA's exp of numbers <= 0 in float32, with results below 2^-126 as 0. NaN stays NaN. Products are
// added unrounded (-ffp-contract=fast), as by XLA.
inline Vec XlaExp(Vec x) {
  typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
  const Vec least = Splat(-87.8f);
  const Vec clamped = x < least ? least : x;
  const Vec turns = clamped * 1.44269504088896341f + 0.5f;
  const Ints toward_zero = __builtin_convertvector(turns, Ints);
  const Ints floor = toward_zero + (__builtin_convertvector(toward_zero, Vec) > turns);
  const Ints lowest = Ints{} - 127;
  const Ints power = floor < lowest ? lowest : floor;
  const Vec whole = __builtin_convertvector(power, Vec);
  Vec rest = clamped - whole * 0.693359375f;
  rest = rest - whole * -2.12194440e-4f;
  Vec value = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  value = value * rest + 8.3334519073e-3f;
  value = value * rest + 4.1665795894e-2f;
  value = value * rest + 1.6666665459e-1f;
  value = value * rest + 5.0000001201e-1f;
  value = value * (rest * rest) + rest + 1.0f;
  // Casts between vectors of one size keep the bits.
  value *= (Vec)((power + 127) << 23);
  value = value < std::numeric_limits<float>::min() ? Vec{} : value;
  return x == x ? value : x;
}

// Sums side by side, in as many registers as they need.
struct Sums {
  Vec at[kDrawVecs];

  void Add(const Sums& other) {
    for (int v = 0; v < kDrawVecs; ++v) at[v] += other.at[v];
  }
  // The sum of all: halves are added to one another.
  float Total() const {
    float all[kSideBySide];
    for (int v = 0; v < kDrawVecs; ++v) Store(all + v * kLanes, at[v]);
    for (int64_t half = kSideBySide / 2; half > 0; half /= 2)
      for (int64_t i = 0; i < half; ++i) all[i] += all[half + i];
    return all[0];
  }
};

// A total with what its last additions rounded away (Kahan 1965).
struct CorrectedSums {
  Sums total = {}, error = {};

  void Add(const float* chunk) {
    for (int v = 0; v < kDrawVecs; ++v) {
      const Vec step = Load(chunk + v * kLanes) - error.at[v];
      const Vec next = total.at[v] + step;
      error.at[v] = (next - total.at[v]) - step;
      total.at[v] = next;
    }
  }
};

// The logits of a row and what its masses are made with.
struct DrawRow {
  const float* logits;
  int64_t vocab;
  float top, scale;  // scale = 1 / temperature

  // Masses of `kSideBySide` tokens; beyond the vocabulary they are 0.
  Sums Masses(int64_t from) const {
    Sums mass;
    float padded[kSideBySide];
    const float* at = logits + from;
    if (from + kSideBySide > vocab) {
      std::fill(padded, padded + kSideBySide, -std::numeric_limits<float>::infinity());
      if (from < vocab) std::copy(at, logits + vocab, padded);
      at = padded;
    }
    for (int v = 0; v < kDrawVecs; ++v) mass.at[v] = XlaExp((Load(at + v * kLanes) - top) * scale);
    return mass;
  }

  // Sums over `kLeaf` tokens.
  Sums Leaf(int64_t from) const {
    Sums sums = Masses(from);
    for (int64_t i = kSideBySide; i < kLeaf; i += kSideBySide) sums.Add(Masses(from + i));
    return sums;
  }

  // Sums of the blocks of `width` tokens, and the sums side by side of each chunk: both begin
  // where chunk `first` begins. `width` is a power of 2 from kBranch to kChunk.
  void Sum(int64_t first, int64_t end, int64_t width, float* blocks, float* chunks) const {
    for (int64_t c = first; c < end; ++c) {
      Sums chunk = {}, block = {};
      for (int64_t from = c * kChunk; from < (c + 1) * kChunk; from += kBranch) {
        Sums branch = Leaf(from);
        for (int64_t i = kLeaf; i < kBranch; i += kLeaf) branch.Add(Leaf(from + i));
        chunk.Add(branch);
        block.Add(branch);
        if ((from + kBranch) % width == 0) {
          *blocks++ = block.Total();
          block = {};
        }
      }
      for (int v = 0; v < kDrawVecs; ++v) Store(chunks + v * kLanes, chunk.at[v]);
      chunks += kSideBySide;
    }
  }
};

// Running sums of `from` in `to`, in runs of kRun: a run's own, then what was before the run.
inline void RunningSums(const float* from, int64_t count, float* to) {
  const int64_t runs = (count + kRun - 1) / kRun;
  for (int64_t r = 0; r < runs; ++r) {
    float sum = 0;
    for (int64_t i = r * kRun; i < std::min(count, (r + 1) * kRun); ++i) to[i] = sum += from[i];
  }
  if (runs == 1) return;
  std::vector<float> ends(2 * runs);
  for (int64_t r = 0; r + 1 < runs; ++r) ends[r] = to[(r + 1) * kRun - 1];
  RunningSums(ends.data(), runs - 1, ends.data() + runs);
  for (int64_t i = kRun; i < count; ++i) to[i] += ends[runs + i / kRun - 1];
}

// First index of positive mass whose running sum exceeds the target, else the last positive one,
// else 0.
inline int64_t FirstPast(const float* running, const float* mass, int64_t count, float target) {
  int64_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!(mass[i] > 0)) continue;
    if (running[i] > target) return i;
    last = i;
  }
  return last;
}

// The token at which the running mass passes uniform * total.
inline int64_t InverseCdf(const DrawRow& row, const float* blocks, int64_t width, float uniform) {
  const int64_t count = (row.vocab + width - 1) / width;
  std::vector<float> running(std::max(count, width)), mass(width);
  RunningSums(blocks, count, running.data());
  float target = uniform * running[count - 1];
  asm volatile("" : "+m"(target));  // Rounded before anything is taken from it.
  const int64_t block = FirstPast(running.data(), blocks, count, target);
  const float before = running[block] - blocks[block];
  for (int64_t i = 0; i < width; i += kSideBySide) {
    const Sums masses = row.Masses(block * width + i);
    for (int v = 0; v < kDrawVecs; ++v) Store(mass.data() + i + v * kLanes, masses.at[v]);
  }
  RunningSums(mass.data(), width, running.data());
  return block * width + FirstPast(running.data(), mass.data(), width, target - before);
}

// The largest logit; NaN is passed over.
inline float Top(const float* logits, int64_t count) {
  Vec top = Splat(-std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec other = Load(logits + i);
    top = other > top ? other : top;
  }
  float highest = -std::numeric_limits<float>::infinity();
  for (int lane = 0; lane < kLanes; ++lane) highest = std::max(highest, top[lane]);
  for (; i < count; ++i) highest = logits[i] > highest ? logits[i] : highest;
  return highest;
}

// The first of the largest logits, or the first that is NaN.
inline int64_t ArgMax(const float* logits, int64_t count, float top) {
  int64_t best = -1;
  for (int64_t i = 0; i < count; ++i) {
    if (logits[i] != logits[i]) return i;
    if (best < 0 && logits[i] == top) best = i;
  }
  return std::max<int64_t>(best, 0);
}

}  // namespace polaris

#endif  // POLARIS_NATIVE_DRAW_H_
