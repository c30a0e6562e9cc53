// Work shared among the threads of XLA's pool.
//
// It is split into items, and these into one run of neighbours a thread: what a thread reads goes on
// where it left off. Who has ended his own run helps with another. The caller takes part and waits
// only for items that some thread has begun, so a pool whose threads are all callers themselves
// goes on.

#ifndef POLARIS_NATIVE_FOR_EACH_H_
#define POLARIS_NATIVE_FOR_EACH_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace polaris {

constexpr int kSpins = 20000;           // About a quarter of a millisecond, longer than most items take.
constexpr int64_t kMinFlops = 1 << 19;  // Less is not worth another thread.

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Items 0 to count - 1, each once; `work` must not throw.
template <typename Work>
void ForEach(xla::ffi::ThreadPool& pool, int64_t count, int64_t threads, const Work& work) {
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

}  // namespace polaris

#endif  // POLARIS_NATIVE_FOR_EACH_H_
