/// @file
/// Independent tasks on all cores.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "carve/head.hpp"

namespace carve {

/// How a batched call runs.
struct run_options {
  unsigned threads = 0;  ///< 0: as many as the machine has
  /// Called after each finished task with (done, total), from one thread at a
  /// time.
  std::function<void(index_t, index_t)> progress = {};
};

/// Calls `task(i)` for every i below `count`, each once, on several threads.
/// The first exception thrown by a task is thrown again here, after the tasks
/// under way have ended.
template <class F>
void parallel_for(index_t count, const run_options& run, F&& task) {
  std::atomic<index_t> next{0};
  index_t done = 0;
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    for (index_t i; (i = next.fetch_add(1)) < count;) {
      try {
        task(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
        next = count;
        return;
      }
      const std::lock_guard lock(mutex);
      ++done;
      if (run.progress) run.progress(done, count);
    }
  };
  const unsigned wanted =
      run.threads != 0 ? run.threads
                       : std::max(1u, std::thread::hardware_concurrency());
  const index_t threads = std::min<index_t>(wanted, count);
  {
    std::vector<std::jthread> others;
    for (index_t i = 1; i < threads; ++i) others.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace carve
