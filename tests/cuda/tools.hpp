// What every GPU test needs: a problem held in double, the token loop that is
// its definition, and the kernels run on it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <future>
#include <semaphore>
#include <string>
#include <thread>
#include <vector>

#include "carve/cuda.hpp"

namespace carve::cuda::test {

/// A tensor on the host: `[tokens, heads, channels]`, tokens of all batch
/// entries one after the other.
using values = std::vector<double>;

/// Everything a call reads, every value already representable in its format.
struct inputs {
  problem shape;  ///< sizes, family, formats, options; its pointers are unused
  std::vector<std::int64_t> cu;  ///< empty: one sequence for each batch entry
  values q, k, v, g, beta, b, e, w, initial_state, w_down, w_up;
  values d_o, d_final_state;
  /// Elements between the rows of device tensors beyond the channels.
  int padding = 0;
  /// The reference says whether its numbers are exact, which takes it longer
  /// than to find them.
  bool watch = false;
  /// Family carve: the forward keeps the windows' means, the backward takes
  /// them.
  bool keep_means = false;
};

/// Everything a call writes.
struct results {
  values o, final_state;
  values dq, dk, dv, dg, dbeta, db, de, dw, d_initial_state, d_w_down, d_w_up;
  values window_means;  // if kept; not of the reference
  // Of the reference that watches alone: whether every value met on the way is
  // a multiple of 2^-10 below 2^13 (then no fp32 sum of them rounds, in any
  // order), and whether each is representable in the input format.
  bool exact_sums = true, exact_operands = true;
};

struct named_values {
  const char* name;
  const values* got;
  const values* expected;
};

/// The gradients that the family has, paired.
std::vector<named_values> paired(const results& got, const results& expected);

/// Rounds to the nearest value of the format.
double rounded(double x, format f);

/// Token by token in double, forward and, where there is d_o, backward.
results reference(const inputs& in);

/// Calls prepare(i) for every i below `count` on all cores, ahead of judge(i),
/// which is called in order by this thread: the device has one at a time.
template <class Prepare, class Judge>
void prepare_and_judge(std::size_t count, Prepare&& prepare, Judge&& judge) {
  const std::size_t cores = std::max(1u, std::thread::hardware_concurrency());
  // As many as are prepared at once wait to be judged, and no more.
  std::counting_semaphore<> room(static_cast<std::ptrdiff_t>(2 * cores));
  std::vector<std::promise<void>> ready(count);
  std::atomic<std::size_t> next{0};
  std::vector<std::jthread> workers;
  for (std::size_t n = 0; n < std::min(cores, count); ++n)
    workers.emplace_back([&](const std::stop_token& stop) {
      for (;;) {
        room.acquire();
        const std::size_t i = next++;
        if (i >= count || stop.stop_requested()) return room.release();
        try {
          prepare(i);
          ready[i].set_value();
        } catch (...) {
          ready[i].set_exception(std::current_exception());
        }
      }
    });
  for (std::size_t i = 0; i < count; ++i) {
    try {
      ready[i].get_future().get();
      judge(i);
    } catch (...) {
      // A judge that gives up: the workers end, and with them this call.
      for (std::jthread& w : workers) w.request_stop();
      room.release(static_cast<std::ptrdiff_t>(2 * cores));
      throw;
    }
    room.release();
  }
}

/// Runs forward (and backward) on the device, outputs filled with NaN first.
/// Fails the running test on any status but success.
results run(const inputs& in, path how, bool backward = true);
/// Runs one decode step on a problem with T = 1.
results run_decode(const inputs& in);

/// ||got - expected|| / ||expected||; NaN where a NaN is met, 0 for two empty
/// or two zero tensors.
double relative_rms(const values& got, const values& expected);

/// The same algorithm with the kernels' roundings, where one is known: its
/// error against the exact result is the unit of tolerance.
using rounding_replay = std::function<results(const inputs&)>;
rounding_replay& replay();

/// Sizes of a generated problem.
struct sizes {
  family fam = family::gdn2;
  format input = format::bf16;
  int B = 1, T = 64, H = 1, HV = 1, K = 64, V = 64;
  std::vector<std::int64_t> cu;
  bool read_before = false, start_state = true;
  int window = 64, rank = 4;
  std::uint64_t seed = 1;
  double rate = 0;  ///< of draw::steady and draw::uniform
};

/// How the values of a generated problem are drawn.
enum class draw {
  easy,           ///< independent unit keys, decays of about 0.2 to 1
  hard,           ///< keys sharing a direction, erase 0.8 to 1, slow decay
  no_decay,       ///< log decay 0
  strong_decay,   ///< log decay from 0 down to -200
  fast_channels,  ///< log decay near -5 in every fourth channel, else slow
  binary_gates,   ///< erase and write gates exactly 0 or 1
  steady,         ///< log decay `rate`, every token and channel
  uniform,        ///< log decay from 0 down to `rate`
  lattice,        ///< small integers: no step of the recurrence rounds
};
const char* name_of(draw d);
const char* name_of(family f);

inputs make(const sizes& s, draw d);

}  // namespace carve::cuda::test
