// How fast are the kernels, against the bytes they cannot avoid moving?
//
//   carve-cuda-bench [--family NAME] [--direction forward|backward|decode]
//                    [--shape BxTxHxD]
//                    [--path best|general|columnwise|in_order]
//                    [--repeat N]
//   carve-cuda-bench --workspace
//   carve-cuda-bench --rivals
//
// prints, for each row, the time per token and value head, the floor (each
// input read once, each output written once, at the copy bandwidth measured
// in this run) and their ratio; or, without a device, the bytes of workspace of
// every way to compute, by token and value head; or, by cuda/rivals.py, the
// times of other kernels beside these.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "common.cuh"
#include "kernels.hpp"

using namespace carve::cuda;

namespace {

void require(cudaError_t e) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(e));
  std::exit(1);
}

/// Uniform in [0, 1), a function of its two arguments alone.
__device__ float hashed(std::uint64_t seed, std::uint64_t i) {
  std::uint64_t x = seed * 0x9e3779b97f4a7c15ull + i;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  x ^= x >> 31;
  return static_cast<float>(x >> 40) * 0x1p-24f;
}

__device__ float normal(std::uint64_t seed, std::uint64_t i) {
  const float u = hashed(seed, 2 * i) + 0x1p-25f;
  return sqrtf(-2.0f * logf(u)) * cospif(2.0f * hashed(seed, 2 * i + 1));
}

enum class values : int { unit_normal, gate, log_decay };

/// One block a row; unit_normal rows are scaled by `scale`.
__global__ void fill(void* x, int width, format f, values kind, float scale,
                     std::uint64_t seed) {
  const std::int64_t row = blockIdx.x;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const std::int64_t at = row * width + i;
    float y = normal(seed, at);
    if (kind == values::unit_normal) y *= scale;
    if (kind == values::gate) y = 1.0f / (1.0f + expf(-y));
    if (kind == values::log_decay) {
      // Slow heads and fast ones: amplitude from 0.08 to 1.
      const float amplitude = 0.08f + 0.92f * hashed(seed + 1, i);
      y = -amplitude * log1pf(expf(0.6f * y + 0.3f));
    }
    store_from_float(x, at, f, y);
  }
}

/// Device memory, freed at the end.
using buffer = std::unique_ptr<void, decltype(&cudaFree)>;

buffer allocate(std::size_t bytes) {
  void* p = nullptr;
  require(cudaMalloc(&p, std::max<std::size_t>(bytes, 256)));
  return {p, cudaFree};
}

struct shape {
  int B, T, H, D;
};

struct case_data {
  problem p;
  outputs out;
  gradients grad;
  float* state = nullptr;
  std::vector<buffer> memory;
  std::size_t bytes = 0;
};

enum class direction : int { forward, backward, decode };

problem sized(family fam, const shape& s) {
  problem p;
  p.family = fam;
  p.B = p.N = s.B;
  p.T = s.T;
  p.H = p.HV = s.H;
  p.K = p.V = s.D;
  p.scale = 1.0f / std::sqrt(static_cast<float>(s.D));
  p.window = 64;
  p.rank = 16;
  return p;
}

/// Allocates and fills one set of tensors; counts the bytes a call must move.
/// `kept`: of carve's backward, what its forward can keep is there.
case_data make(family fam, const shape& s, direction way, bool kept,
               std::uint64_t seed) {
  case_data c;
  problem& p = c.p;
  p = sized(fam, s);
  const gate_channels have = gate_channels_of(p);
  const bool content = info(fam).content_gate;
  const std::int64_t rows = std::int64_t(s.B) * s.T * s.H;
  auto array = [&](std::int64_t height, int width, format f, values kind,
                   float scale) {
    const std::size_t bytes =
        std::size_t(height) * width * (f == format::fp32 ? 4 : 2);
    c.memory.push_back(allocate(bytes));
    void* data = c.memory.back().get();
    fill<<<static_cast<unsigned>(height), 128>>>(data, width, f, kind, scale,
                                                 ++seed);
    require(cudaGetLastError());
    return data;
  };
  auto place = [&](int width, format f, values kind, float scale = 1.0f) {
    tensor t;
    if (width == 0) return t;
    t.data = array(rows, width, f, kind, scale);
    t.head = width;
    t.token = std::int64_t(width) * s.H;
    t.batch = t.token * s.T;
    c.bytes += std::size_t(rows) * width * (f == format::fp32 ? 4 : 2);
    return t;
  };
  const float unit = p.scale;
  const auto f = p.input;
  p.q = place(p.K, f, values::unit_normal, unit);
  p.k = place(p.K, f, values::unit_normal, unit);
  p.v = place(p.V, f, values::unit_normal);
  p.g = place(have.g, format::fp32, values::log_decay);
  p.beta = place(have.beta, f, values::gate);
  p.b = place(
      have.b, f,
      content && way != direction::decode ? values::unit_normal : values::gate);
  p.e = place(have.e, f, values::gate);
  p.w = place(have.w, f, values::gate);
  if (content) {
    p.w_down =
        static_cast<float*>(array(std::int64_t(s.H) * p.rank, p.V, format::fp32,
                                  values::unit_normal, 0.1f));
    p.w_up =
        static_cast<float*>(array(std::int64_t(s.H) * p.K, p.rank, format::fp32,
                                  values::unit_normal, 0.1f));
  }
  if (way == direction::backward) {
    c.grad.d_o = place(p.V, f, values::unit_normal);
    c.grad.dq = place(p.K, f, values::gate);
    c.grad.dk = place(p.K, f, values::gate);
    c.grad.dv = place(p.V, f, values::gate);
    c.grad.dg = place(have.g, format::fp32, values::gate);
    c.grad.dbeta = place(have.beta, f, values::gate);
    c.grad.db = place(have.b, f, values::gate);
    c.grad.de = place(have.e, f, values::gate);
    c.grad.dw = place(have.w, f, values::gate);
    if (content) {
      c.grad.d_w_down = static_cast<float*>(array(
          std::int64_t(s.H) * p.rank, p.V, format::fp32, values::gate, 1.0f));
      c.grad.d_w_up = static_cast<float*>(array(
          std::int64_t(s.H) * p.K, p.rank, format::fp32, values::gate, 1.0f));
      if (kept)
        c.grad.window_means =
            static_cast<float*>(array(window_slots(p) * p.HV, p.V, format::fp32,
                                      values::unit_normal, 0.1f));
    }
  } else {
    c.out.o = place(p.V, f, values::gate);
  }
  if (way == direction::decode) {
    const std::int64_t states = std::int64_t(s.B) * s.H * p.K;
    c.state = static_cast<float*>(
        array(states, p.V, format::fp32, values::unit_normal, 1.0f));
    c.bytes += 2 * std::size_t(states) * p.V * 4;
  }
  return c;
}

enum class route : int { best, general, columnwise, in_order };

/// A forward that the library would not choose by itself; absent for the routes
/// that are a path of its own.
struct forward_way {
  bool (*supports)(const problem&);
  status (*workspace)(const problem&, std::size_t*);
  status (*run)(const problem&, const outputs&, void*, std::size_t,
                CUstream_st*);
};
const forward_way* way_of(route how) {
  static const forward_way columnwise = {forward_columnwise_supports,
                                         forward_columnwise_workspace,
                                         forward_columnwise};
  static const forward_way in_order = {
      forward_hopper_supports, forward_hopper_workspace, forward_hopper};
  return how == route::columnwise ? &columnwise
         : how == route::in_order ? &in_order
                                  : nullptr;
}

status workspace_of(const case_data& c, direction way, route how,
                    std::size_t* bytes) {
  const path via = how == route::general ? path::general : path::best;
  *bytes = 0;
  if (const forward_way* const own = way_of(how)) {
    if (way != direction::forward || !own->supports(c.p))
      return {unsupported, "no such kernel for this problem"};
    return own->workspace(c.p, bytes);
  }
  if (way == direction::decode) return {};
  if (way == direction::backward) return backward_workspace(c.p, bytes, via);
  return forward_workspace(c.p, bytes, via);
}

status call(const case_data& c, direction way, route how, void* ws,
            std::size_t bytes) {
  const path via = how == route::general ? path::general : path::best;
  if (way == direction::decode) return decode(c.p, c.out.o, c.state, nullptr);
  if (way == direction::backward)
    return backward(c.p, c.grad, ws, bytes, nullptr, via);
  if (const forward_way* const own = way_of(how))
    return own->run(c.p, c.out, ws, bytes, nullptr);
  return forward(c.p, c.out, ws, bytes, nullptr, via);
}

double median(std::vector<float> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

/// Median milliseconds of `once(i)`, everything queued before the first ends.
template <class F>
double timed(F&& once, int repeat) {
  for (int i = 0; i < 3; ++i) once(i);
  require(cudaDeviceSynchronize());
  std::vector<cudaEvent_t> marks(repeat + 1);
  for (auto& m : marks) require(cudaEventCreate(&m));
  require(cudaEventRecord(marks[0]));
  for (int i = 0; i < repeat; ++i) {
    once(i);
    require(cudaEventRecord(marks[i + 1]));
  }
  require(cudaDeviceSynchronize());
  std::vector<float> ms(repeat);
  for (int i = 0; i < repeat; ++i)
    require(cudaEventElapsedTime(&ms[i], marks[i], marks[i + 1]));
  for (auto& m : marks) require(cudaEventDestroy(m));
  return median(ms);
}

/// Median milliseconds of a device copy of `bytes`.
double copy_ms(std::size_t bytes, int repeat) {
  const buffer a = allocate(bytes), b = allocate(bytes);
  require(cudaMemset(a.get(), 1, bytes));
  return timed(
      [&](int) {
        require(
            cudaMemcpyAsync(b.get(), a.get(), bytes, cudaMemcpyDeviceToDevice));
      },
      repeat);
}

/// Bytes per second of a large device copy, reads and writes both counted.
double copy_bandwidth() {
  const std::size_t bytes = std::size_t(1) << 30;
  return 2.0 * bytes / (copy_ms(bytes, 15) * 1e-3);
}

/// The families that have kernels.
std::vector<family> families_with_kernels() {
  std::vector<family> all;
  for (const carve::family_info& f : carve::families)
    if (takes_delta_steps(f.id)) all.push_back(f.id);
  return all;
}

family family_of(const char* name) {
  for (const family f : families_with_kernels())
    if (info(f).name == name) return f;
  std::fprintf(stderr, "unknown name %s; known are:", name);
  for (const family f : families_with_kernels())
    std::fprintf(stderr, " %s", info(f).name.data());
  std::fprintf(stderr, "\n");
  std::exit(2);
}

const char* const direction_names[] = {"forward", "backward", "decode"};
const char* const route_names[] = {"best", "general", "columnwise", "in_order"};

template <std::size_t N>
int index_of(const char* const (&names)[N], const char* name) {
  for (std::size_t i = 0; i < N; ++i)
    if (std::strcmp(names[i], name) == 0) return static_cast<int>(i);
  std::fprintf(stderr, "unknown name %s; known are:", name);
  for (const char* n : names) std::fprintf(stderr, " %s", n);
  std::fprintf(stderr, "\n");
  std::exit(2);
}

void row(family fam, direction way, const shape& s, route how, int repeat,
         double bandwidth, bool kept = false) {
  std::vector<case_data> sets;
  sets.push_back(make(fam, s, way, kept, 1));
  // Small problems rotate among several, so that no run meets its inputs in
  // the cache.
  const std::size_t beyond_cache = std::size_t(256) << 20;
  while (sets.size() * sets[0].bytes < beyond_cache && sets.size() < 16)
    sets.push_back(make(fam, s, way, kept, 100 * sets.size()));
  std::size_t bytes = 0;
  status outcome = workspace_of(sets[0], way, how, &bytes);
  const buffer ws = allocate(bytes);
  if (outcome) outcome = call(sets[0], way, how, ws.get(), bytes);
  const cudaError_t error = cudaDeviceSynchronize();
  char label[64];
  std::snprintf(label, sizeof label, "%dx%dx%dx%d", s.B, s.T, s.H, s.D);
  std::printf("%-11s %-8s %-14s ", info(fam).name.data(),
              direction_names[static_cast<int>(way)], label);
  if (!outcome || error != cudaSuccess) {
    std::printf("%s\n", outcome ? cudaGetErrorString(error) : outcome.text);
    if (error != cudaSuccess) std::exit(1);
    return;
  }
  const char* kernel =
      way == direction::decode ? "decode"
      : way_of(how) == nullptr
          ? kernel_name(sets[0].p, way == direction::backward,
                        how == route::general ? path::general : path::best)
          : route_names[static_cast<int>(how)];
  const double ms = timed(
      [&](int i) {
        const status s = call(sets[i % sets.size()], way, how, ws.get(), bytes);
        if (!s) {
          std::fprintf(stderr, "%s\n", s.text);
          std::exit(1);
        }
      },
      repeat);
  const double units = double(s.B) * s.T * s.H;
  const double floor = sets[0].bytes / bandwidth * 1e9 / units;
  const double ns = ms * 1e6 / units;
  std::printf("%-18s %9.3f ms %8.3f ns  floor %6.3f  ratio %6.2f", kernel, ms,
              ns, floor, ns / floor);
  if (kept) std::printf("  means kept by the forward");
  if (way == direction::decode)
    std::printf("  copy of as many bytes %.3f ns",
                copy_ms(sets[0].bytes / 2, repeat) * 1e6 / units);
  std::printf("\n");
  std::fflush(stdout);
}

/// Bytes of workspace of every way to compute, by token and value head.  (Of
/// those that also ask whether a problem fills the device, whatever it is.)
void print_workspace(const std::vector<shape>& shapes) {
  struct way {
    const char* name;
    bool (*supports)(const problem&);
    status (*bytes)(const problem&, std::size_t*);
  };
  const auto all = [](const problem&) { return true; };
  const auto no_content = [](const problem& p) {
    return !info(p.family).content_gate;
  };
  const way ways[] = {
      {"forward_scan", forward_scan_supports, forward_scan_workspace},
      {"forward_hopper", forward_hopper_supports, forward_hopper_workspace},
      {"forward_columnwise", forward_columnwise_supports,
       forward_columnwise_workspace},
      {"forward_general", all, forward_general_workspace},
      {"forward_steps", no_content, forward_steps_workspace},
      {"backward_full_grid", backward_full_grid_shapes,
       backward_full_grid_workspace},
      {"backward_hopper", backward_hopper_supports, backward_hopper_workspace},
      {"backward_general", all, backward_general_workspace},
      {"backward_steps", no_content, backward_steps_workspace}};
  std::printf("| way | family |");
  for (const shape& s : shapes)
    std::printf(" %dx%dx%dx%d |", s.B, s.T, s.H, s.D);
  std::printf("\n|---|---|");
  for (std::size_t i = 0; i < shapes.size(); ++i) std::printf("--:|");
  std::printf("\n");
  for (const way& w : ways)
    for (const family f : families_with_kernels()) {
      if (std::none_of(shapes.begin(), shapes.end(),
                       [&](const shape& s) { return w.supports(sized(f, s)); }))
        continue;
      std::printf("| %s | %s |", w.name, info(f).name.data());
      for (const shape& s : shapes) {
        if (!w.supports(sized(f, s))) {
          std::printf(" |");
          continue;
        }
        std::size_t bytes = 0;
        if (!w.supports(sized(f, s))) {
          std::printf(" |");
          continue;
        }
        w.bytes(sized(f, s), &bytes);
        std::printf(" %.0f |",
                    bytes / (double(s.B) * double(s.T) * double(s.H)));
      }
      std::printf("\n");
    }
}

[[noreturn]] void usage() {
  std::fprintf(stderr,
               "carve-cuda-bench [--family NAME] [--direction forward|backward|"
               "decode]\n  [--shape BxTxHxD] "
               "[--path best|general|columnwise|in_order]\n  [--repeat "
               "N]\ncarve-cuda-bench --workspace\n"
               "carve-cuda-bench --rivals\n");
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<family> families = families_with_kernels();
  std::vector<int> directions = {0, 1, 2};
  std::vector<shape> shapes = {{8, 4096, 16, 128},
                               {4, 2048, 32, 128},
                               {1, 8192, 16, 128},
                               {1, 65536, 16, 128},
                               {8, 4096, 16, 64}};
  std::vector<int> routes = {0};
  bool own_shape = false;
  int repeat = 15;
  if (argc == 2 && std::strcmp(argv[1], "--workspace") == 0) {
    print_workspace(shapes);
    return 0;
  }
  if (argc == 2 && std::strcmp(argv[1], "--rivals") == 0) {
    const std::string command =
        std::string("python3 \"") + CARVE_RIVALS + "\" \"" + argv[0] + "\"";
    return std::system(command.c_str()) == 0 ? 0 : 1;
  }
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i];
    if (i + 1 >= argc) usage();
    const char* value = argv[i + 1];
    if (option == "--family") {
      families = {family_of(value)};
    } else if (option == "--direction") {
      directions = {index_of(direction_names, value)};
    } else if (option == "--path") {
      routes = {index_of(route_names, value)};
    } else if (option == "--repeat") {
      repeat = std::max(1, std::atoi(value));
    } else if (option == "--shape") {
      shape s{};
      if (std::sscanf(value, "%dx%dx%dx%d", &s.B, &s.T, &s.H, &s.D) != 4 ||
          s.B < 1 || s.T < 1 || s.H < 1 || s.D < 1)
        usage();
      shapes = {s};
      own_shape = true;
    } else {
      usage();
    }
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 77;
  }
  // A GPU at rest takes a while to reach its clocks.
  {
    const buffer a = allocate(std::size_t(1) << 28);
    cudaEvent_t from, to;
    require(cudaEventCreate(&from));
    require(cudaEventCreate(&to));
    float ms = 0;
    require(cudaEventRecord(from));
    while (ms < 500) {
      for (int i = 0; i < 50; ++i)
        require(cudaMemsetAsync(a.get(), i, std::size_t(1) << 28));
      require(cudaEventRecord(to));
      require(cudaEventSynchronize(to));
      require(cudaEventElapsedTime(&ms, from, to));
    }
  }
  cudaDeviceProp device;
  require(cudaGetDeviceProperties(&device, 0));
  const double bandwidth = copy_bandwidth();
  std::printf(
      "%s, copy %.2f TB/s (read + write); times per token and value "
      "head, median of %d\n",
      device.name, bandwidth * 1e-12, repeat);
  for (const int way : directions)
    for (const int how : routes)
      for (const family fam : families) {
        const direction d = static_cast<direction>(way);
        if (d == direction::decode && !own_shape) {
          row(fam, d, {128, 1, 16, 128}, static_cast<route>(how), repeat,
              bandwidth);
          continue;
        }
        for (shape s : shapes) {
          if (d == direction::decode && s.T != 1) continue;
          row(fam, d, s, static_cast<route>(how), repeat, bandwidth);
          if (fam == family::carve && d == direction::backward &&
              static_cast<route>(how) == route::best)
            row(fam, d, s, route::best, repeat, bandwidth, true);
        }
      }
  return 0;
}
