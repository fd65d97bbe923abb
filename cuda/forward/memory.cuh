// How do the chunked forward's data lie in shared memory, and a prepared chunk
// in global memory?
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "arch/shared.cuh"
#include "arch/tile.cuh"
#include "chunk/decay.cuh"
#include "chunk/inverse.cuh"

namespace carve::cuda::forward_chunks {

using namespace arch;
using namespace chunks;

constexpr int largest_rank = 128;

/// Along which axis a gate varies; `content`: a gate per channel made of its
/// logits and of the outputs of the window before.
enum class axis { none, head, channel, content };

/// What a walk is for: the outputs; nothing but the state at its end; or what
/// the backward needs of each chunk (backward/states.cuh).  For the last,
/// operands are fp16, and the write gates stand with the tail keys and with the
/// columns of L, so that the solve gives what a token writes before its gate:
///   x = T' (v - (k*e^G) S),  T' = (I + stril(e^(G_t - G_s) k k^T) diag(b))^-1.
enum class purpose { outputs, end_state, states };

/// A member that only some kernels have; [[no_unique_address]] makes it free,
/// where no other of its type (or `Which`) is absent beside it.
template <class T, int Which>
struct nothing {};
template <bool There, class T, int Which = 0>
using when = std::conditional_t<There, T, nothing<T, Which>>;

// ---- a prepared chunk of K key channels ----

/// Its tiles, each a row a token.  With a content gate the erase keys lack the
/// gate, there is no T yet, and the keys to couple them with are part of the
/// chunk.  Without `Reads`, where nothing but the state is wanted, there are
/// neither queries nor P.
template <int K, axis Erase, bool Reads = true>
struct chunk_tiles {
  static constexpr bool content = Erase == axis::content;
  tile erase_keys[K / 64];                                     // b*k*2^y
  [[no_unique_address]] when<content, tile[K / 64]> own_keys;  // k*2^-y
  [[no_unique_address]] when<Reads, tile[K / 64], 1> queries;  // q*2^y
  tile tail_keys[K / 64];                                      // k*e^{G_C-G}
  [[no_unique_address]] when<Reads, tile> products;            // P
  tile inverse;                                                // T
};

/// Its numbers: decay from the chunk's start to the reference (powers of two)
/// and from there to its end; gates of one number per token.
struct decay_numbers {
  __nv_bfloat16 before[128];
  float after[128];
};
struct gate_numbers : decay_numbers {
  float write[chunk];
};
/// Content: the queries and the rows of P, summed over the tokens, and which
/// channels were left out of the products, a bit each.
struct content_numbers : gate_numbers {
  float queries_sum[128];
  float products_sum[chunk];
  std::uint32_t apart[4];
};
template <axis Erase>
using chunk_numbers = std::conditional_t<
    Erase == axis::channel, decay_numbers,
    std::conditional_t<Erase == axis::content, content_numbers, gate_numbers>>;

/// The parts of a prepared chunk and their sizes in bytes.
template <int K, axis Erase, bool Reads = true>
struct prepared {
  static constexpr bool content = Erase == axis::content;
  using tiles = chunk_tiles<K, Erase, Reads>;
  using numbers = chunk_numbers<Erase>;
  static constexpr int keys_bytes = K / 64 * tile::bytes;
  // In global memory: tiles (without T, if that is not there), numbers, and of
  // a content gate the logits, for the copy engine as tiles too.
  static constexpr int stored = sizeof(tiles) - content * tile::bytes;
  static constexpr int logits = stored + sizeof(numbers);
  static constexpr int bytes = logits + content * keys_bytes;
  // Content: the copy engine brings erase keys and keys, and the numbers from
  // products_sum on, apart from the rest.
  static constexpr int keys_end = 2 * keys_bytes;
  static constexpr int sums_end = sizeof(gate_numbers) + 128 * 4;
};

// ---- shared memory ----

/// What only a preparing warpgroup uses.
template <int K, axis Decay, bool Content, bool Reads = true>
struct preparing_memory {
  static constexpr bool channels = Decay == axis::channel;
  // The logs y of a chunk, fp32, 16 rows at a time: first where the chunk's
  // products (and inverse) will stand, the rest here.
  using log_rows = float[16 * K];
  static constexpr int room =
      (Reads + !Content) * tile::bytes / sizeof(log_rows);
  static constexpr int lent = room < 4 ? room : 4;
  static constexpr int kept = 4 - lent;

  [[no_unique_address]] when<channels && !Content, tile[K / 64]> own_keys;
  [[no_unique_address]] when<channels && (kept > 0),
                             log_rows[kept > 0 ? kept : 1]>
      logs;
  // With one decay a token it is where the tail keys will stand.
  [[no_unique_address]] when<channels && !Content, inverse_scratch[4]>
      inverting;
  // The halves' totals; or, of decays of one number per token, the prefixes
  // in a block of 16, the factors of query, erase key and tail key, and the
  // decay to the end of the block of 16, of this chunk and of the one before.
  using log_sums = float[(channels ? 4 : 5) * chunk];
  log_sums totals[channels ? 1 : 2];
  std::uint32_t apart[2][4];  // of each half
};

/// How many warpgroups prepare beside the walkers, in turn: two where they have
/// registers and shared memory enough.
template <axis Decay, axis Erase>
constexpr int preparers = Decay != axis::channel&& Erase == axis::head ? 2 : 1;

/// What a block that walks does: all for a head of a sequence; the same but for
/// the outputs; what is left of it when others prepare; or that for 64 value
/// channels.
enum class share { all, state, wide, narrow };

/// How many prepared chunks a walking block holds.
template <axis Decay, axis Erase, share Share>
constexpr int stages_of =
    Share == share::state    ? 2 * preparers<Decay, Erase> + 1
    : Share != share::narrow ? preparers<Decay, Erase> + 1
    : Erase == axis::content ? 2
                             : 3;

/// What a walking warpgroup holds of the values: some chunks' v, in whose place
/// o is assembled, and of a write gate per channel w.
template <axis Decay, axis Erase, axis Write, share Share>
struct values_memory {
  static constexpr int v_stages =
      Share != share::narrow &&
              (Erase == axis::content || preparers<Decay, Erase> == 2)
          ? 1
          : 2;
  static constexpr int w_stages = Write != axis::channel   ? 0
                                  : Share == share::narrow ? 2
                                                           : 1;
  tile v[v_stages];
  [[no_unique_address]] when<(w_stages > 0), tile[w_stages > 0 ? w_stages : 1]>
      w;
};

/// What the content gate uses.
template <int K, int V, int Windows>
struct gate_memory {
  tile logits[K / 64];           // of a chunk
  inverse_scratch inverting[4];  // later the blocks (w, 0), see block()
  float sums[Windows][V];        // outputs of a window, but for their scale
  union {
    float inner[largest_rank];  // W_down times the mean; when that is used
    float solution[2][chunk];   // z of two chunks
  };
  float shift[K];  // e to minus the shifts of the logits
  float unit[4];   // (the first) of what z is made of
  uint4 blocks[3][32];
};

/// Barriers of a content gate.
template <int Stages>
struct content_barriers {
  // Of a stage's erase keys and keys alone: they are there (with clusters),
  // they may be overwritten.
  std::uint64_t keyed[Stages], erased[Stages];
  // A chunk's logits are there; with clusters, they have been read, and the
  // sums of two windows are there.
  std::uint64_t logits, taken, known[2];
};

/// A block that walks: its warpgroups and its shared memory.
template <int K, int V, axis Decay, axis Erase, axis Write, share Share>
struct walk_memory {
  static constexpr bool content = Erase == axis::content;
  static constexpr bool narrow = Share == share::narrow;
  static constexpr bool reads = Share != share::state;
  static constexpr purpose made_for =
      reads ? purpose::outputs : purpose::end_state;
  // Blocks of a cluster that prepare chunks for each other in turn.
  static constexpr int together = reads ? 1 : 2;
  // Warpgroups, after those that walk: one or two that prepare, or one that
  // loads, and one that gates; or, narrow, two that gate and one that leads.
  static constexpr int walkers = narrow ? 1 : V / 64;
  static constexpr int preparing =
      Share == share::all || !reads ? preparers<Decay, Erase> : 0;
  static constexpr int loading = preparing > 0 || (narrow && content) ? 0 : 1;
  static constexpr int gating = !content ? 0 : narrow ? 3 : 1;
  static constexpr int groups = walkers + preparing + loading + gating;
  static constexpr int window_bytes = V * 4;  // that a cluster sends a block
  static constexpr int stages = stages_of<Decay, Erase, Share>;
  using part = prepared<K, Erase, reads>;
  using values_of = values_memory<Decay, Erase, Write, Share>;
  using gate_waits = content_barriers<stages>;
  using preparer = preparing_memory<K, Decay, content, reads>;
  using gate_type = gate_memory<K, V, narrow ? 2 : 1>;

  typename part::tiles blocks[stages];
  values_of values[walkers];
  [[no_unique_address]] when<(preparing > 0),
                             preparer[preparing > 0 ? preparing : 1]>
      own;
  [[no_unique_address]] when<content, gate_type> gate;
  typename part::numbers numbers[stages];
  std::uint64_t ready[stages], empty[stages];  // prepared, to be overwritten
  [[no_unique_address]] when<content, gate_waits> gate_barriers;
};

/// A warpgroup that prepares for other blocks.
template <int K, axis Decay, axis Erase>
struct alignas(1024) preparer_memory {
  static constexpr int count = 2;  // of a block
  typename prepared<K, Erase>::tiles block;
  preparing_memory<K, Decay, Erase == axis::content> own;
  typename prepared<K, Erase>::numbers numbers;
};

}  // namespace carve::cuda::forward_chunks
