// What does each warpgroup of a block do, and how do they hand chunks on?
#pragma once

#include "chunk/list.cuh"
#include "forward/gate.cuh"
#include "forward/memory.cuh"
#include "forward/prepare.cuh"

namespace carve::cuda::forward_chunks {

/// Sends a prepared chunk to where it stands in another block of the cluster,
/// whose threads await one arrival and the bytes.
template <class Memory>
__device__ __forceinline__ void send_chunk(shared<Memory> m, int stage,
                                           int rank) {
  using part = typename Memory::part;
  const std::uint32_t ready = cluster_address(m[&Memory::ready][stage], rank);
  const auto send = [&](std::uint32_t from, std::uint32_t bytes) {
    bulk_send(cluster_address(from, rank), from, bytes, ready);
  };
  barrier_expect_there(ready, part::stored + sizeof(typename part::numbers));
  send(m[&Memory::blocks][stage], part::stored);
  send(m[&Memory::numbers][stage], sizeof(typename part::numbers));
}

/// Prepares every chunk that is its turn, beside the walkers: warpgroup `which`
/// of those that prepare in the cluster's block `rank`.
template <class In, int K, axis Decay, axis Erase, class Memory>
__device__ __forceinline__ void prepare_beside(const problem& p,
                                               const sequence_span& span,
                                               int head, shared<Memory> m,
                                               int which, int rank,
                                               int thread) {
  const int length = static_cast<int>(span.length);
  constexpr int together = Memory::together, stages = Memory::stages;
  constexpr int every = Memory::preparing * together;
  const int turn = which * together + rank;
  preparation<In, K, Decay, Erase, every, Memory::made_for> prepare;
  prepare.start(p, span, head, turn * chunk, m[&Memory::own][which],
                which == 0 ? named::prepare : named::prepare_second, thread);
  auto next = prepare.fetch_scalars(p, turn * chunk);
  int fetched = turn;  // the chunk whose loads come next
  // Starts the loads of chunk n, if the walk is through with what was in its
  // place; `wait`: until it is.
  const auto fetch = [&](int n, bool wait) {
    if (fetched > n || n * chunk >= length) return;
    const int stage = n % stages;
    if (n >= stages) {
      const shared<std::uint64_t> empty = m[&Memory::empty][stage];
      const int phase = (n / stages - 1) & 1;
      if (wait)
        barrier_wait<(together > 1)>(empty, phase);
      else if (!__all_sync(~0u, barrier_test<(together > 1)>(empty, phase)))
        return;
    }
    prepare.fetch(p, m[&Memory::blocks][stage]);
    fetched += every;
  };
  fetch(turn, true);
#pragma unroll 1
  for (int n = turn; n * chunk < length; n += every) {
    const int stage = n % stages;
    const auto one = next;
    next = prepare.fetch_scalars(p, (n + every) * chunk);
    prepare.run(p, n * chunk, m[&Memory::blocks][stage],
                m[&Memory::numbers][stage], one, span, head,
                [&] { fetch(n + every, false); });
    fence_async_proxy();
    if constexpr (together == 1) {
      barrier_arrive(m[&Memory::ready][stage]);
    } else {
      sync_group<group>(prepare.barrier);
      if (thread == 0) {
        send_chunk(m, stage, rank ^ 1);
        barrier_arrive(m[&Memory::ready][stage]);
      }
    }
    fetch(n + every, true);
  }
}

/// Where blocks that prepare leave chunks for those that walk: `slots` chunks
/// a head and a flag for each.
struct handover {
  char* chunks;
  int* flags;
  int slots;
};

/// Prepares every `lanes`-th chunk of a head from the `lane`-th on for other
/// blocks, and raises its flag.  `Logits`: those of the content gate too.
template <class In, int K, axis Decay, axis Erase, bool Logits>
__device__ __forceinline__ void prepare_for_others(
    const problem& p, const handover& there, int head, int lane, int lanes,
    shared<preparer_memory<K, Decay, Erase>> m, int barrier, int thread) {
  using memory = preparer_memory<K, Decay, Erase>;
  using part = prepared<K, Erase>;
  const shared<typename part::tiles> block = m[&memory::block];
  preparation<In, K, Decay, Erase> prepare;
  for (int i = lane; i < there.slots; i += lanes) {
    const chunk_turn now = find_turn(p, i);
    const int slot = first_slot(p, now.sequence) + now.chunk;
    const sequence_span span = span_of(p.cu_seqlens, p.T, now.sequence);
    const int first = now.chunk * chunk;
    if (first >= span.length) continue;
    const std::int64_t index =
        static_cast<std::int64_t>(head) * there.slots + slot;
    char* const to = there.chunks + index * part::bytes;
    prepare.start(p, span, head, first, m[&memory::own], barrier, thread);
    prepare.fetch(p, block);
    if constexpr (Logits)
      copy_logits<K>(p, span, head, first, to + part::logits, thread);
    const auto one = prepare.fetch_scalars(p, first);
    prepare.run(p, first, block, m[&memory::numbers], one, span, head, [] {});
    fence_async_proxy();
    sync_group<group>(barrier);
    if (thread == 0) {
      bulk_store(to, block, part::stored);
      bulk_store(to + part::stored, m[&memory::numbers],
                 sizeof(typename part::numbers));
      bulk_store_wait();
      fence_async_global();
      raise_flag(there.flags + index);
    }
    sync_group<group>(barrier);
  }
}

/// Brings the chunks of a head of a sequence that other blocks prepare, each
/// part by one thread.
template <class Memory>
struct chunk_loader {
  using part = typename Memory::part;
  shared<Memory> m;
  const char* chunks;  // the sequence's first
  const int* flags;

  __device__ chunk_loader(shared<Memory> memory, const problem& p,
                          const handover& there, int sequence, int head)
      : m(memory) {
    const std::int64_t first =
        static_cast<std::int64_t>(head) * there.slots + first_slot(p, sequence);
    chunks = there.chunks + first * part::bytes;
    flags = there.flags + first;
  }

  /// Until chunk n is prepared.
  __device__ __forceinline__ void await(int n) const {
    wait_flag(flags + n);
    fence_async_global();
  }
  __device__ const char* at(int n) const { return chunks + n * part::bytes; }

  struct range {
    int from, to;
  };
  static constexpr int numbers_end = sizeof(typename part::numbers);
  __device__ __forceinline__ void load(int n, int stage, range of_tiles,
                                       range of_numbers,
                                       std::uint32_t ready) const {
    const auto bring = [&](std::uint32_t to, const char* from, range r) {
      bulk_load(to + r.from, from + r.from, r.to - r.from, ready);
    };
    barrier_expect(
        ready, of_tiles.to - of_tiles.from + of_numbers.to - of_numbers.from);
    bring(m[&Memory::blocks][stage], at(n), of_tiles);
    bring(m[&Memory::numbers][stage], at(n) + part::stored, of_numbers);
  }

  /// All chunks, as their stages become empty.
  __device__ __forceinline__ void load_all(std::int64_t length) const {
    ring<Memory::stages> turn{0, 1};
    for (int n = 0; n * chunk < length; ++n) {
      const int stage = turn.stage;
      if (n >= Memory::stages)
        barrier_wait(m[&Memory::empty][stage], turn.phase);
      await(n);
      load(n, stage, {0, part::stored}, {0, numbers_end},
           m[&Memory::ready][stage]);
      turn.advance();
    }
  }

  // With a content gate keys and erase keys come ahead of the rest.
  __device__ __forceinline__ void load_keys(int n) const {
    using waits = typename Memory::gate_waits;
    const shared<waits> b = m[&Memory::gate_barriers];
    const int stage = n & 1, phase = ((n - 2) >> 1) & 1;
    if (n > 1) barrier_wait(b[&waits::erased][stage], phase);
    load(n, stage, {0, part::keys_end}, {part::sums_end, numbers_end},
         b[&waits::keyed][stage]);
  }
  __device__ __forceinline__ void load_rest(int n) const {
    const int stage = n & 1, phase = ((n - 2) >> 1) & 1;
    if (n > 1) barrier_wait(m[&Memory::empty][stage], phase);
    load(n, stage, {part::keys_end, part::stored}, {0, part::sums_end},
         m[&Memory::ready][stage]);
  }
  __device__ __forceinline__ void load_logits(int n) const {
    using waits = typename Memory::gate_waits;
    const shared<waits> b = m[&Memory::gate_barriers];
    if (n > 0) barrier_wait(b[&waits::taken], (n - 1) & 1);
    barrier_expect(b[&waits::logits], part::keys_bytes);
    bulk_load(m[&Memory::gate][&Memory::gate_type::logits],
              at(n) + part::logits, part::keys_bytes, b[&waits::logits]);
  }
};

/// Where the means of a sequence's windows are kept, for one head: that which
/// its first window would follow, or null.
__device__ __forceinline__ float* means_of(const problem& p, const outputs& out,
                                           const sequence_span& span,
                                           int sequence, int head) {
  if (out.window_means == nullptr) return nullptr;
  const std::int64_t slot =
      window_slot(p, span.batch * p.T + span.first, sequence);
  return out.window_means + (slot * p.HV + head) * p.V;
}

/// Warpgroup `which` of those that gate the chunks of a head for the walkers,
/// in order: all put the gate on, the first makes z and T.  A single one leads
/// as well; two are led by `lead_chunks`.
template <class In, int K, int V, class Memory>
__device__ __forceinline__ void gate_chunks(const problem& p,
                                            sequence_span span, int head,
                                            shared<Memory> m, int which,
                                            float* means, int thread) {
  using tiles = chunk_tiles<K, axis::content>;
  using waits = typename Memory::gate_waits;
  constexpr int Groups = Memory::narrow ? 2 : 1;
  const shared<waits> b = m[&Memory::gate_barriers];
  using gate_type = content_gate<In, K, V, Groups>;
  constexpr bool leads = Groups == 1;
  constexpr int walkers = gate_type::walkers;
  constexpr int moved_threads = leads ? group : 3 * group;
  const int length = static_cast<int>(span.length);
  const bool first = leads || which == 0;
  gate_type gate;
  gate.start(p, span, head, m[&Memory::gate], which * group + thread);
  if (first) gate.clear(m[&Memory::blocks]);
  if constexpr (leads) {
    gate.clear_shifts();
    if (length > 0) gate.fetch(p, span, 0, b[&waits::logits]);
  }
  sync_group<moved_threads>(named::moved);
  int left = 1;  // tokens of the window
#pragma unroll 1
  for (int n = 0; n * chunk < length; ++n) {
    const int stage = n & 1;
    const shared<tiles> block = m[&Memory::blocks][stage];
    const shared<content_numbers> numbers = m[&Memory::numbers][stage];
    // That the erase keys and keys are there.
    const auto await_keys = [&] {
      barrier_wait(leads ? m[&Memory::ready][stage] : b[&waits::keyed][stage],
                   (n >> 1) & 1);
    };
    forget(gate.thread);
    forget(gate.lane);
    forget(gate.head);
    forget(span.first);
    // What does not need the mean, or the keys, is done before these are waited
    // for.
    const bool moves = left <= 0;
    if constexpr (!leads) await_keys();
    typename gate_type::weights weights = {};
    if (leads && moves) weights = gate.load_weights(p);
    barrier_wait(b[&waits::logits], n & 1);
    const auto pieces = gate.take(block, 0);
    if (moves) {
      if constexpr (leads) {
        sync_group<with_gate<walkers>>(named::known);
        if (means != nullptr) means += p.HV * V;
        gate.move(p, weights, 0, means);
      }
      sync_group<moved_threads>(named::moved);
    }
    if constexpr (leads) await_keys();
    if (left <= 0 || n == 0) left = p.window;
    left -= chunk;
    gate.apply(block, pieces, gate.current());
    fence_async_proxy();
    if (!first) {
      arrive_group<Groups * group>(named::gated);
      barrier_arrive_warp(b[&waits::taken], gate.lane);
      continue;
    }
    sync_group<Groups * group>(named::gated);
    if constexpr (!leads) {
      barrier_arrive_warp(b[&waits::taken], gate.lane);
    } else if ((n + 1) * chunk < length) {
      gate.fetch(p, span, (n + 1) * chunk, b[&waits::logits]);
    }
    constexpr int threads = with_gate<walkers>;
    float l[32];
    gate.couple(l, p, span, n * chunk, block, numbers,
                [&] { arrive_group<threads>(named::coupled + stage); });
    gate.make_inverse(l, block, numbers, stage);
    fence_async_proxy();
    arrive_group<threads>(named::inverted + stage);
  }
}

/// The warpgroup that leads two that gate for one walker: finds the shifts of
/// the logits, and brings the chunks, a thread of each of three warps a part.
template <class In, int K, int V, class Memory>
__device__ __forceinline__ void lead_chunks(const problem& p,
                                            const sequence_span& span, int head,
                                            shared<Memory> m,
                                            const chunk_loader<Memory>& loader,
                                            float* means, int thread) {
  const int length = static_cast<int>(span.length);
  content_gate<In, K, V, 2> gate;
  gate.start(p, span, head, m[&Memory::gate], thread);
  gate.clear_shifts();
  sync_group<3 * group>(named::moved);
  // These wait for the chunk after the one they bring, so that none waits long.
  const auto load = [&](int n) {
    if (thread == 32) loader.load_keys(n);
    if (thread == 64) loader.load_logits(n);
    if (thread == 96) loader.load_rest(n);
    if (thread % 32 == 0 && thread > 0 && (n + 1) * chunk < length)
      loader.await(n + 1);
  };
  if (length > 0) {
    if (thread % 32 == 0 && thread > 0) loader.await(0);
    load(0);
  }
  const auto weights = gate.load_weights(p);
  int left = 1, window = 0;  // tokens of the window, and whose sums come next
#pragma unroll 1
  for (int n = 0; n * chunk < length; ++n) {
    if (left <= 0) {
      const int which = window & 1;
      using waits = typename Memory::gate_waits;
      const shared<std::uint64_t> known =
          m[&Memory::gate_barriers][&waits::known][which];
      barrier_wait(known, (window >> 1) & 1);
      if (thread == 0) barrier_expect(known, Memory::window_bytes);
      if (means != nullptr) means += p.HV * V;
      gate.move(p, weights, which, means);
      arrive_group<3 * group>(named::moved);
      ++window;
    }
    if (left <= 0 || n == 0) left = p.window;
    left -= chunk;
    if ((n + 1) * chunk < length) load(n + 1);
  }
}

}  // namespace carve::cuda::forward_chunks
