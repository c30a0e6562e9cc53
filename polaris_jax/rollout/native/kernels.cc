// Decoding on a CPU: products with weights packed once, and attention over pages, for XLA's FFI.
//
// Compiled on the machine that runs it (build.py), for its own vector units. Products and attention
// give a row the same bits whatever other rows there are and wherever a decode call began: every sum
// goes over its terms one after the other, in lanes that depend on nothing but the term.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "attention.h"
#include "draw.h"
#include "for_each.h"
#include "product.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace polaris {
namespace {

// A range of memory in which only complete pages of `size` bytes lie.
struct Pages {
  uint8_t *start, *end;

  Pages(void* from, size_t bytes, uintptr_t size) {
    const uintptr_t first = (reinterpret_cast<uintptr_t>(from) + size - 1) / size * size;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(from) + bytes) / size * size;
    start = reinterpret_cast<uint8_t*>(first);
    end = reinterpret_cast<uint8_t*>(std::max(first, last));
  }
};

// Asks for large pages for memory that is written next: with small ones a product of few rows waits
// for their addresses. A system without them leaves it as it is.
void LargePages(void* from, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  const Pages large(from, bytes, 1 << 21);
  if (large.start < large.end) madvise(large.start, large.end - large.start, MADV_HUGEPAGE);
#endif
}

// Zeros; what lies there is read from anywhere. On Linux the memory is given back to the system,
// which gives it anew, as zeros, where it is first used: a page pool takes memory as it fills.
ffi::Error Zeros(ffi::ThreadPool pool, ffi::Result<ffi::AnyBuffer> out) {
  constexpr int64_t kPart = 1 << 21;
  uint8_t* to = static_cast<uint8_t*>(out->untyped_data());
  const int64_t bytes = out->size_bytes();
  LargePages(to, bytes);
#if defined(__linux__)
  const Pages small(to, bytes, sysconf(_SC_PAGESIZE));
  if (small.start < small.end &&
      madvise(small.start, small.end - small.start, MADV_DONTNEED) == 0) {
    std::memset(to, 0, small.start - to);
    std::memset(small.end, 0, to + bytes - small.end);
    return ffi::Error::Success();
  }
#endif
  ForEach(pool, (bytes + kPart - 1) / kPart, pool.num_threads(), [&](int64_t item) {
    std::memset(to + item * kPart, 0, std::min(kPart, bytes - item * kPart));
  });
  return ffi::Error::Success();
}

// out = panels of weights[L, D, X]: [L, P, D, 32] of floats, [L, P, D / 2, 32, 2] of bfloat16
// numbers, of which D must be even. The last panel is filled up with zeros.
template <typename T>
ffi::Error PackAs(ffi::ThreadPool& pool, ffi::AnyBuffer weights, ffi::Result<ffi::AnyBuffer> out) {
  constexpr int64_t kTerms = sizeof(float) / sizeof(T);
  const int64_t layers = weights.dimensions()[0], width = weights.dimensions()[1];
  const int64_t columns = weights.dimensions()[2], panels = (columns + kPanel - 1) / kPanel;
  if (width % kTerms || out->element_count() != static_cast<size_t>(layers * panels * width * kPanel))
    return ffi::Error::InvalidArgument("pack: shapes do not fit");
  LargePages(out->untyped_data(), out->size_bytes());
  ForEach(pool, layers * panels, pool.num_threads(), [&](int64_t item) {
    const int64_t first = item % panels * kPanel;
    const int64_t count = std::min<int64_t>(kPanel, columns - first);
    const T* from = static_cast<const T*>(weights.untyped_data()) +
                    item / panels * width * columns + first;
    T* to = static_cast<T*>(out->untyped_data()) + item * width * kPanel;
    for (int64_t d = 0; d < width; ++d) {
      T* row = to + d / kTerms * kTerms * kPanel + d % kTerms;
      for (int64_t i = 0; i < kPanel; ++i)
        row[i * kTerms] = i < count ? from[d * columns + i] : T{};
    }
  });
  return ffi::Error::Success();
}

ffi::Error Pack(ffi::ThreadPool pool, ffi::AnyBuffer weights, ffi::Result<ffi::AnyBuffer> out) {
  const auto from = weights.element_type(), to = out->element_type();
  if (from == ffi::F32 && to == ffi::F32) return PackAs<float>(pool, weights, out);
  if (from == ffi::BF16 && to == ffi::U16) return PackAs<Bfloat16>(pool, weights, out);
  return ffi::Error::InvalidArgument("pack: neither float32 nor bfloat16 to bits");
}

// out[M, X] = x[M, D] * weights[layer], packed by `PackAs`, for the rows that are listed in ascending
// order; the others are zeros. A row that is not there ends the list.
template <typename T>
ffi::Error ProductOf(ffi::ThreadPool& pool, int64_t layer, ffi::Buffer<ffi::S32> listed,
                     ffi::AnyBuffer x, ffi::AnyBuffer weights, ffi::ResultBuffer<ffi::F32> out) {
  const int64_t given = x.dimensions()[0], width = x.dimensions()[1];
  const int64_t layers = weights.dimensions()[0], panels = weights.dimensions()[1];
  const int64_t columns = out->dimensions()[1];
  if (weights.element_count() != static_cast<size_t>(layers * panels * width * kPanel) ||
      layer < 0 || width % Terms<T>::kTerms || layer >= layers || out->dimensions()[0] != given ||
      columns <= (panels - 1) * kPanel || columns > panels * kPanel)
    return ffi::Error::InvalidArgument("packed_product: shapes do not fit");
  const T* from = static_cast<const T*>(weights.untyped_data()) + layer * panels * width * kPanel;
  const T* inputs = static_cast<const T*>(x.untyped_data());
  float* to = out->typed_data();
  const int32_t* at = listed.typed_data();
  int64_t rows = 0, next = 0;
  for (; rows < static_cast<int64_t>(listed.element_count()) && at[rows] < given; ++rows) {
    if (at[rows] < next)
      return ffi::Error::InvalidArgument("packed_product: rows are not in ascending order");
    std::memset(to + next * columns, 0, (at[rows] - next) * columns * sizeof(float));
    next = at[rows] + 1;
  }
  std::memset(to + next * columns, 0, (given - next) * columns * sizeof(float));
  const bool apart = rows < next;  // They do not lie side by side from the first on.
  std::vector<T> gathered;
  if (apart) {
    gathered.resize(rows * width);
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(&gathered[r * width], inputs + at[r] * width, width * sizeof(T));
    inputs = gathered.data();
  }
  const int64_t threads = 1 + 2 * rows * width * columns / kMinFlops;
  const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
  ForEach(pool, panels * blocks, threads, [&](int64_t item) {
    const int64_t p = item / blocks, r = item % blocks * kRowBlock;
    Panel(inputs + r * width, std::min(kRowBlock, rows - r), width, from + p * width * kPanel,
          to + (apart ? 0 : r) * columns + p * kPanel, columns,
          std::min<int64_t>(kPanel, columns - p * kPanel), apart ? at + r : nullptr);
  });
  return ffi::Error::Success();
}

ffi::Error PackedProduct(ffi::ThreadPool pool, ffi::Buffer<ffi::S32> layer,
                         ffi::Buffer<ffi::S32> listed, ffi::AnyBuffer x, ffi::AnyBuffer weights,
                         ffi::ResultBuffer<ffi::F32> out) {
  const int64_t at = layer.typed_data()[0];
  if (x.element_type() == ffi::F32 && weights.element_type() == ffi::F32)
    return ProductOf<float>(pool, at, listed, x, weights, out);
#if defined(__AVX512BF16__)
  if (x.element_type() == ffi::BF16 && weights.element_type() == ffi::U16)
    return ProductOf<Bfloat16>(pool, at, listed, x, weights, out);
#endif
  return ffi::Error::InvalidArgument("packed_product: not for these types");
}

// out[B T, N, H] of T queries a row over its pages and staged tokens: the first step + 1 for the
// row's first query, and one more for each query behind it. A row without cached tokens attends to
// the staged ones alone. What lies behind the first `asked` queries of a row is zeros.
template <typename T>
ffi::Error AttendTo(ffi::ThreadPool& pool, ffi::Buffer<ffi::S32> layer, ffi::Buffer<ffi::S32> step,
                    ffi::Buffer<ffi::S32> asked, ffi::Buffer<ffi::F32> q, ffi::AnyBuffer k_staged,
                    ffi::AnyBuffer v_staged, ffi::AnyBuffer k_pages, ffi::AnyBuffer v_pages,
                    ffi::Buffer<ffi::S32> cached, ffi::Buffer<ffi::S32> table,
                    ffi::ResultBuffer<ffi::F32> out) {
  constexpr int kGroup = 8;
  const auto staged = k_staged.dimensions();  // [L, B, K, H, T]
  const int64_t batch = staged[1], num_kv = staged[2], width = staged[3], most = staged[4];
  const int64_t at = layer.typed_data()[0], taken = step.typed_data()[0] + 1;
  const int64_t layers = staged[0], group = q.dimensions()[1] / num_kv;
  const int64_t num_pages = k_pages.dimensions()[0] / layers, page = k_pages.dimensions()[3];
  const int64_t pages_of_row = table.dimensions()[1], queries = q.dimensions()[0] / batch;
  if (at < 0 || at >= layers || taken < 1 || queries < 1 || taken + queries - 1 > most ||
      q.dimensions()[0] != batch * queries ||
      asked.element_count() != static_cast<size_t>(batch))
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
    tokens += (count + taken) * std::clamp<int64_t>(asked.typed_data()[b], 0, queries);
  }
  const auto numbers = [](const ffi::AnyBuffer& buffer) {
    return static_cast<const T*>(buffer.untyped_data());
  };
  const Rows<T> rows = {.q = q.typed_data(),
                        .k_pages = numbers(k_pages),
                        .v_pages = numbers(v_pages),
                        .k_staged = numbers(k_staged) + at * batch * num_kv * width * most,
                        .v_staged = numbers(v_staged) + at * batch * num_kv * width * most,
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
    const int64_t live = std::clamp<int64_t>(asked.typed_data()[b], 0, queries);
    Rows<T> seen = rows;
    for (int64_t t = 0; t < queries; ++t, ++seen.steps)  // The pages stay in the thread's cache.
      for (int64_t g = 0; g < group; g += kGroup) {
        const int64_t from = (((b * queries + t) * num_kv + kv) * group + g) * width;
        if (t >= live) {
          std::fill_n(out->typed_data() + from, std::min<int64_t>(kGroup, group - g) * width, 0.0f);
          continue;
        }
        AttendGroup<kGroup>(std::min<int64_t>(kGroup, group - g), seen, b, kv, rows.q + from,
                            out->typed_data() + from, buffer);
      }
  });
  return ffi::Error::Success();
}

ffi::Error AttendStaged(ffi::ThreadPool pool, ffi::Buffer<ffi::S32> layer,
                        ffi::Buffer<ffi::S32> step, ffi::Buffer<ffi::S32> asked,
                        ffi::Buffer<ffi::F32> q, ffi::AnyBuffer k_staged, ffi::AnyBuffer v_staged,
                        ffi::AnyBuffer k_pages, ffi::AnyBuffer v_pages,
                        ffi::Buffer<ffi::S32> cached, ffi::Buffer<ffi::S32> table,
                        ffi::ResultBuffer<ffi::F32> out) {
  const auto type = k_pages.element_type();
  for (const ffi::AnyBuffer& other : {k_staged, v_staged, v_pages})
    if (other.element_type() != type)
      return ffi::Error::InvalidArgument("attend_staged: types do not fit");
  const auto attend = type == ffi::U16 ? AttendTo<Bfloat16> : AttendTo<float>;
  if (type != ffi::U16 && type != ffi::F32)
    return ffi::Error::InvalidArgument("attend_staged: neither float32 nor bits of bfloat16");
  return attend(pool, layer, step, asked, q, k_staged, v_staged, k_pages, v_pages, cached, table, out);
}

// A token of each row of logits[B, V], its (logit - top) / temperature, and the row's sum of masses.
// Temperature 0: the likeliest token, and temperature 1.
ffi::Error Draw(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> logits, ffi::Buffer<ffi::F32> uniform,
                ffi::Buffer<ffi::F32> temperature, ffi::ResultBuffer<ffi::S32> token,
                ffi::ResultBuffer<ffi::F32> chosen, ffi::ResultBuffer<ffi::F32> norm) {
  const int64_t batch = logits.dimensions()[0], vocab = logits.dimensions()[1];
  int64_t width = 4;
  while (width * width < vocab) width *= 2;
  if (width < kBranch || width > kChunk || uniform.element_count() != static_cast<size_t>(batch) ||
      temperature.element_count() != static_cast<size_t>(batch))
    return ffi::Error::InvalidArgument("draw: shapes do not fit");
  const int64_t chunks = (vocab + kChunk - 1) / kChunk, blocks = chunks * kChunk / width;
  const int64_t parts = (vocab + kDrawPart - 1) / kDrawPart;
  const int64_t threads = 1 + batch * vocab / kMinDrawn;
  std::vector<float> tops(batch * parts), block_sums(batch * blocks);
  std::vector<float> chunk_sums(batch * chunks * kSideBySide);
  const float* from = logits.typed_data();
  ForEach(pool, batch * parts, threads, [&](int64_t item) {
    const int64_t b = item / parts, first = item % parts * kDrawPart;
    tops[item] = Top(from + b * vocab + first, std::min(kDrawPart, vocab - first));
  });
  const auto row_of = [&](int64_t b) {
    const float t = temperature.typed_data()[b];
    const float* top = std::max_element(&tops[b * parts], &tops[b * parts] + parts);
    return DrawRow{from + b * vocab, vocab, *top, 1.0f / (t == 0 ? 1.0f : t)};
  };
  ForEach(pool, batch * parts, threads, [&](int64_t item) {
    const int64_t b = item / parts, first = item % parts * (kDrawPart / kChunk);
    row_of(b).Sum(first, std::min(chunks, first + kDrawPart / kChunk), width,
                  &block_sums[b * blocks + first * kChunk / width],
                  &chunk_sums[(b * chunks + first) * kSideBySide]);
  });
  ForEach(pool, batch, threads, [&](int64_t b) {
    const DrawRow row = row_of(b);
    CorrectedSums sums;
    for (int64_t c = 0; c < chunks; ++c) sums.Add(&chunk_sums[(b * chunks + c) * kSideBySide]);
    // What is left behind the last chunk is added too, nothing or not.
    const float nothing[kSideBySide] = {};
    if (vocab % kChunk == 0) sums.Add(nothing);
    const int64_t drawn =
        temperature.typed_data()[b] == 0
            ? ArgMax(row.logits, vocab, row.top)
            : InverseCdf(row, &block_sums[b * blocks], width, uniform.typed_data()[b]);
    token->typed_data()[b] = static_cast<int32_t>(drawn);
    chosen->typed_data()[b] = (row.logits[drawn] - row.top) * row.scale;
    norm->typed_data()[b] = sums.total.Total();
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace polaris

XLA_FFI_DEFINE_HANDLER_SYMBOL(polaris_zeros, polaris::Zeros,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(polaris_pack, polaris::Pack,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(polaris_packed_product, polaris::PackedProduct,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(polaris_attend_staged, polaris::AttendStaged,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(polaris_draw, polaris::Draw,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

// 1 if products of bfloat16 numbers are compiled.
extern "C" int polaris_multiplies_bfloat16() {
#if defined(__AVX512BF16__)
  return 1;
#else
  return 0;
#endif
}
