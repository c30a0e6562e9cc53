// Decoding on a CPU: products with weights packed once, and attention over pages, for XLA's FFI.
//
// Compiled on the machine that runs it (build.py), for its own vector units. Products and attention
// give a row the same bits whatever other rows there are and wherever a decode call began: every sum
// goes over its terms one after the other, in lanes that depend on nothing but the term.
//
// Work is split into items, and these into one run of neighbours a thread: what a thread reads goes on
// where it left off. Who has ended his own run helps with another. The caller takes part and waits
// only for items that some thread has begun, so a pool whose threads are all callers themselves
// goes on.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

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
constexpr int kPanel = 32;       // Columns of a packed panel: PANEL_COLUMNS in ops.py.
constexpr int64_t kDepth = 512;  // Rows of a panel that are used for all rows of x at once.
constexpr int64_t kRowBlock = 240;      // Rows of x of one item, a multiple of any tile.
constexpr int64_t kAhead = 64;          // Rows of a panel that are asked for ahead of their use: 8 KiB.
constexpr int kLine = 16;               // Numbers in a line of the cache.
constexpr int kSpins = 20000;  // About a quarter of a millisecond, longer than most items take.
constexpr int64_t kMinFlops = 1 << 19;  // Less is not worth another thread.

// Numbers side by side in a register.
template <int N>
struct VectorOf {
  typedef float Type __attribute__((vector_size(N * sizeof(float))));
};
template <>
struct VectorOf<1> {
  typedef float Type;
};
template <int N>
using Lanes = typename VectorOf<N>::Type;
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

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Items 0 to count - 1, each once; `work` must not throw.
template <typename Work>
void ForEach(ffi::ThreadPool& pool, int64_t count, int64_t threads, const Work& work) {
  struct alignas(64) Run {
    std::atomic<int64_t> next;
    int64_t end;
  };
  struct Shared {
    explicit Shared(int64_t threads) : runs(threads) {}
    std::vector<Run> runs;
    std::atomic<int64_t> done{0};
  };
  threads = std::min<int64_t>({threads, count, pool.num_threads()});
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) work(i);
    return;
  }
  auto shared = std::make_shared<Shared>(threads);
  for (int64_t t = 0; t < threads; ++t) {
    shared->runs[t].next = count * t / threads;
    shared->runs[t].end = count * (t + 1) / threads;
  }
  // A task that starts late finds no item left and does not touch `work`, which is gone by then.
  auto take = [shared, threads, work = &work](int64_t own) {
    for (int64_t t = 0; t < threads; ++t) {
      Run& run = shared->runs[(own + t) % threads];
      for (int64_t i; (i = run.next.fetch_add(1)) < run.end;) {
        (*work)(i);
        shared->done.fetch_add(1, std::memory_order_release);
      }
    }
  };
  for (int64_t t = 1; t < threads; ++t) pool.Schedule([take, t] { take(t); });
  take(0);
  // A yield gives the core to whatever waits for it, at the lowest priority too, for milliseconds.
  for (int spins = 0; shared->done.load(std::memory_order_acquire) < count; ++spins) {
    if (spins < kSpins)
      Pause();
    else
      std::this_thread::yield();
  }
}

// Asks for large pages for memory that is written next: with small ones a product of few rows waits
// for their addresses. A system without them leaves it as it is.
void LargePages(float* from, int64_t count) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kSize = 1 << 21;
  const uintptr_t start = (reinterpret_cast<uintptr_t>(from) + kSize - 1) / kSize * kSize;
  const uintptr_t end = reinterpret_cast<uintptr_t>(from + count) / kSize * kSize;
  if (start < end) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
#endif
}

// out[L, P, D, 32] = panels of weights[L, D, X]; the last is filled up with zeros.
ffi::Error Pack(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> weights,
                ffi::ResultBuffer<ffi::F32> out) {
  const int64_t layers = weights.dimensions()[0], width = weights.dimensions()[1];
  const int64_t columns = weights.dimensions()[2], panels = (columns + kPanel - 1) / kPanel;
  if (out->element_count() != static_cast<size_t>(layers * panels * width * kPanel))
    return ffi::Error::InvalidArgument("pack: shapes do not fit");
  LargePages(out->typed_data(), out->element_count());
  ForEach(pool, layers * panels, pool.num_threads(), [&](int64_t item) {
    const int64_t first = item % panels * kPanel;
    const int64_t count = std::min<int64_t>(kPanel, columns - first);
    const float* from = weights.typed_data() + item / panels * width * columns + first;
    float* to = out->typed_data() + item * width * kPanel;
    for (int64_t d = 0; d < width; ++d) {
      std::memcpy(to + d * kPanel, from + d * columns, count * sizeof(float));
      std::fill(to + d * kPanel + count, to + (d + 1) * kPanel, 0.0f);
    }
  });
  return ffi::Error::Success();
}

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
void Panel(const float* x, int64_t rows, int64_t width, const float* panel, float* out,
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

// out[M, X] = x[M, D] * weights[layer], packed as [L, P, D, 32].
ffi::Error PackedProduct(ffi::ThreadPool pool, ffi::Buffer<ffi::S32> layer,
                         ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> weights,
                         ffi::ResultBuffer<ffi::F32> out) {
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1];
  const int64_t layers = weights.dimensions()[0], panels = weights.dimensions()[1];
  const int64_t columns = out->dimensions()[1];
  const int64_t at = layer.typed_data()[0];
  if (weights.dimensions()[2] != width || weights.dimensions()[3] != kPanel || at < 0 ||
      at >= layers || out->dimensions()[0] != rows || columns <= (panels - 1) * kPanel ||
      columns > panels * kPanel)
    return ffi::Error::InvalidArgument("packed_product: shapes do not fit");
  const float* from = weights.typed_data() + at * panels * width * kPanel;
  float* to = out->typed_data();
  const int64_t threads = 1 + 2 * rows * width * columns / kMinFlops;
  const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
  ForEach(pool, panels * blocks, threads, [&](int64_t item) {
    const int64_t p = item / blocks, r = item % blocks * kRowBlock;
    Panel(x.typed_data() + r * width, std::min(kRowBlock, rows - r), width,
          from + p * width * kPanel, to + r * columns + p * kPanel, columns,
          std::min<int64_t>(kPanel, columns - p * kPanel));
  });
  return ffi::Error::Success();
}

// exp of numbers <= 0 to 2 units in the last place; below -87 it is 0.
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
  return x > -87.0f ? value * power : Vec{};
}

// scores[g][i] = sum over h of q[g][h] * keys[h][i], for `count` tokens side by side. A key's row has
// `stride` tokens: those behind `count` may be read, and as many scores written, up to kLanes - 1.
template <int G>
void Scores(const float* q, int64_t width, const float* keys, int64_t stride, int64_t count,
            float* scores, int64_t scores_stride) {
  for (int64_t i = 0; i < count;)
    i += WithLanes(stride - i, [&](auto lanes) {
      using V = Lanes<lanes>;
      V sum[G] = {};
      for (int64_t h = 0; h < width; ++h) {
        const V key = Load<V>(keys + h * stride + i);
        for (int g = 0; g < G; ++g) sum[g] = Fma(q[g * width + h], key, sum[g]);
      }
      for (int g = 0; g < G; ++g) Store(scores + g * scores_stride + i, sum[g]);
    });
}

// out[g][h] += sum over i of weights[g][i] * values[i][h].
template <int G>
void Gain(const float* weights, int64_t weights_stride, const float* values, int64_t count,
          int64_t width, float* out) {
  for (int64_t h = 0; h < width;)
    h += WithLanes(width - h, [&](auto lanes) {
      using V = Lanes<lanes>;
      V sum[G];
      for (int g = 0; g < G; ++g) sum[g] = Load<V>(out + g * width + h);
      for (int64_t i = 0; i < count; ++i) {
        const V value = Load<V>(values + i * width + h);
        for (int g = 0; g < G; ++g) sum[g] = Fma(weights[g * weights_stride + i], value, sum[g]);
      }
      for (int g = 0; g < G; ++g) Store(out + g * width + h, sum[g]);
    });
}

// Asks for numbers that are used soon. Pages lie anywhere, so the hardware cannot foresee them.
inline void Prefetch(const float* from, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) __builtin_prefetch(from + i, 0, 2);
}

// What the threads share of one call.
struct Rows {
  const float *q, *k_pages, *v_pages, *k_staged, *v_staged;
  const int32_t *cached, *table;
  int64_t num_kv, width, page, pages_of_row, staged, steps, first_page;
};

// Some queries of a KV head of row b: scores of all its tokens, their softmax, the weighted values.
template <int G>
void Attend(const Rows& rows, int64_t b, int64_t kv, const float* q, float* out,
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
  for (int64_t i = 0; i < cached; i += page) {
    if (i + page < cached) Prefetch(rows.k_pages + page_at(i + page), head);
    Scores<G>(scaled, width, rows.k_pages + page_at(i), page, std::min(page, cached - i),
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

template <int G>
void AttendGroup(int64_t group, const Rows& rows, int64_t b, int64_t kv, const float* q, float* out,
                 std::vector<float>& buffer) {
  if constexpr (G > 0) {
    if (group == G)
      Attend<G>(rows, b, kv, q, out, buffer);
    else
      AttendGroup<G - 1>(group, rows, b, kv, q, out, buffer);
  }
}

// out[B, N, H] of one query a row over its pages and the first step + 1 staged tokens. A row
// without cached tokens attends to the staged ones alone.
ffi::Error AttendStaged(ffi::ThreadPool pool, ffi::Buffer<ffi::S32> layer,
                        ffi::Buffer<ffi::S32> step, ffi::Buffer<ffi::F32> q,
                        ffi::Buffer<ffi::F32> k_staged, ffi::Buffer<ffi::F32> v_staged,
                        ffi::Buffer<ffi::F32> k_pages, ffi::Buffer<ffi::F32> v_pages,
                        ffi::Buffer<ffi::S32> cached, ffi::Buffer<ffi::S32> table,
                        ffi::ResultBuffer<ffi::F32> out) {
  constexpr int kGroup = 8;
  const auto staged = k_staged.dimensions();  // [L, B, K, H, T]
  const int64_t batch = staged[1], num_kv = staged[2], width = staged[3], most = staged[4];
  const int64_t at = layer.typed_data()[0], taken = step.typed_data()[0] + 1;
  const int64_t layers = staged[0], group = q.dimensions()[1] / num_kv;
  const int64_t num_pages = k_pages.dimensions()[0] / layers, page = k_pages.dimensions()[3];
  const int64_t pages_of_row = table.dimensions()[1];
  if (at < 0 || at >= layers || taken < 1 || taken > most || q.dimensions()[0] != batch)
    return ffi::Error::InvalidArgument("attend_staged: layer, step or rows do not fit");
  int64_t tokens = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t count = cached.typed_data()[b];
    if (count < 0 || count > pages_of_row * page)
      return ffi::Error::InvalidArgument("attend_staged: more cached tokens than pages");
    for (int64_t j = 0; j * page < count; ++j) {
      const int64_t z = table.typed_data()[b * pages_of_row + j];
      if (z < 0 || z >= num_pages)
        return ffi::Error::InvalidArgument("attend_staged: a page outside the pool");
    }
    tokens += count + taken;
  }
  const Rows rows = {.q = q.typed_data(),
                     .k_pages = k_pages.typed_data(),
                     .v_pages = v_pages.typed_data(),
                     .k_staged = k_staged.typed_data() + at * batch * num_kv * width * most,
                     .v_staged = v_staged.typed_data() + at * batch * num_kv * width * most,
                     .cached = cached.typed_data(),
                     .table = table.typed_data(),
                     .num_kv = num_kv,
                     .width = width,
                     .page = page,
                     .pages_of_row = pages_of_row,
                     .staged = most,
                     .steps = taken,
                     .first_page = at * num_pages};
  const int64_t threads = 1 + 4 * tokens * q.dimensions()[1] * width / kMinFlops;
  ForEach(pool, batch * num_kv, threads, [&](int64_t item) {
    thread_local std::vector<float> buffer;
    const int64_t b = item / num_kv, kv = item % num_kv;
    for (int64_t g = 0; g < group; g += kGroup) {
      const int64_t from = (item * group + g) * width;
      AttendGroup<kGroup>(std::min<int64_t>(kGroup, group - g), rows, b, kv, rows.q + from,
                          out->typed_data() + from, buffer);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(polaris_pack, Pack,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(polaris_packed_product, PackedProduct,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(polaris_attend_staged, AttendStaged,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
