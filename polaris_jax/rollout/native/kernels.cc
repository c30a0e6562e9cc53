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
#endif

#include "attention.h"
#include "draw.h"
#include "for_each.h"
#include "product.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace polaris {
namespace {

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

// Zeros; what lies there is read from anywhere.
ffi::Error Zeros(ffi::ThreadPool pool, ffi::ResultBuffer<ffi::F32> out) {
  constexpr int64_t kPart = 1 << 19;
  float* to = out->typed_data();
  const int64_t count = out->element_count();
  LargePages(to, count);
  ForEach(pool, (count + kPart - 1) / kPart, pool.num_threads(), [&](int64_t item) {
    std::memset(to + item * kPart, 0, std::min(kPart, count - item * kPart) * sizeof(float));
  });
  return ffi::Error::Success();
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
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(polaris_pack, polaris::Pack,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(polaris_packed_product, polaris::PackedProduct,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(polaris_attend_staged, polaris::AttendStaged,
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(polaris_draw, polaris::Draw,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
