// Vectors as wide as the CPU's registers.

#ifndef POLARIS_NATIVE_LANES_H_
#define POLARIS_NATIVE_LANES_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace polaris {

// Numbers of a vector register, and the rows and vectors of a product's tile: as many sums as there
// are registers for. Vectors wider than the registers would be taken apart, slowly.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kTileRows = 12, kTileVecs = 2;
#elif defined(__AVX__)
constexpr int kLanes = 8, kTileRows = 6, kTileVecs = 2;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kTileRows = 6, kTileVecs = 4;
#else
constexpr int kLanes = 4, kTileRows = 4, kTileVecs = 2;
#endif
constexpr int kSums = kTileRows * kTileVecs;  // Registers that sums may take.
constexpr int kLineBytes = 64;                // Of the cache.

// Numbers side by side in a register.
template <typename T, int N>
struct VectorOf {
  typedef T Type __attribute__((vector_size(N * sizeof(T))));
};
template <typename T>
struct VectorOf<T, 1> {
  typedef T Type;
};
template <int N>
using Lanes = typename VectorOf<float, N>::Type;
using Vec = Lanes<kLanes>;

// Numbers need not lie where a vector would be aligned.
template <typename V = Vec>
inline V Load(const float* at) {
  V value;
  std::memcpy(&value, at, sizeof(V));
  return value;
}
template <typename V>
inline void Store(float* at, V value) {
  std::memcpy(at, &value, sizeof(V));
}

// A float's upper half.
struct Bfloat16 {
  uint16_t bits;
};
template <typename V>
inline V Load(const Bfloat16* at) {
  if constexpr (std::is_same_v<V, float>) {
    const uint32_t bits = static_cast<uint32_t>(at->bits) << 16;
    V value;
    std::memcpy(&value, &bits, sizeof(V));
    return value;
  } else {
    constexpr int kWidth = sizeof(V) / sizeof(float);
    typename VectorOf<uint16_t, kWidth>::Type halves;
    std::memcpy(&halves, at, sizeof(halves));
    typedef typename VectorOf<uint32_t, kWidth>::Type Words;
    // Casts between vectors of one size keep the bits.
    return (V)(__builtin_convertvector(halves, Words) << 16);
  }
}
inline Vec Splat(float value) { return value - Vec{}; }

// a * b + c, rounded once: the compiler contracts the two (-ffp-contract=fast), but not where it
// makes vector code of a loop over single numbers.
template <typename V>
inline V Fma(float a, V b, V c) {
  return a * b + c;
}
inline float Fma(float a, float b, float c) { return std::fma(a, b, c); }

// Calls `work` with the largest number of lanes that `count` numbers fill, and returns it. A sum is
// the same bits in any: lanes do not meet.
template <typename Work>
int64_t WithLanes(int64_t count, const Work& work) {
  const auto with = [&work](auto lanes) {
    work(lanes);
    return lanes.value;
  };
  if (count >= kLanes) return with(std::integral_constant<int, kLanes>{});
  if (count >= std::min(kLanes, 8)) return with(std::integral_constant<int, std::min(kLanes, 8)>{});
  if (count >= 4) return with(std::integral_constant<int, 4>{});
  return with(std::integral_constant<int, 1>{});
}

}  // namespace polaris

#endif  // POLARIS_NATIVE_LANES_H_
