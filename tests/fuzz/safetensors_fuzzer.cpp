/// @file
/// Can any bytes make the safetensors reader do worse than throw carve::error?
/// What it accepts must hold together and survive being written again.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "safetensors.hpp"

namespace st = carve::safetensors;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

bool same_bytes(std::span<const std::byte> x, std::span<const std::byte> y) {
  return std::equal(x.begin(), x.end(), y.begin(), y.end());
}

void check(const st::file& file, std::span<const std::byte> input) {
  st::writer writer;
  for (const auto& [key, value] : file.metadata()) {
    writer.set_metadata(key, value);
  }
  std::size_t bytes = 0, data_bytes = 0;
  for (const auto& name : file.names()) {
    data_bytes = std::max(data_bytes, file.info(name).end);
  }
  require(data_bytes <= input.size());
  for (const auto& name : file.names()) {
    const st::tensor_info& info = file.info(name);
    const auto data = file.bytes(name);
    require(data.size() == info.elements * st::item_size(info.dtype));
    bytes += data.size();
    // The data are the end of the file, without a hole.
    require(same_bytes(
        data, input.last(data_bytes).subspan(info.begin, data.size())));
    if (st::is_floating(info.dtype)) {
      require(file.as_double(name).size() == info.elements);
      if (info.dtype != st::dtype::f64) {
        require(file.as_float(name).size() == info.elements);
      }
    } else if (info.dtype != st::dtype::u64) {
      require(file.as_int64(name).size() == info.elements);
    }
    writer.add_bytes(name, info.dtype, info.shape, data);
  }
  require(bytes <= input.size());

  const auto again = writer.serialize();
  const st::file copy = st::file::parse(again);
  require(copy.metadata() == file.metadata());
  require(copy.names() == file.names());
  for (const auto& name : file.names()) {
    require(copy.info(name).dtype == file.info(name).dtype);
    require(copy.info(name).shape == file.info(name).shape);
    require(same_bytes(copy.bytes(name), file.bytes(name)));
  }
}

void try_file(std::span<const std::byte> input) {
  try {
    check(st::file::parse(input), input);
  } catch (const carve::error&) {
    // The one way to refuse.
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  const auto input = std::as_bytes(std::span(data, size));
  try_file(input);

  // Nearly every mutation breaks the length in front and would get no further,
  // so the same bytes come once more with a length up to the last brace.
  std::vector<std::byte> repaired(input.begin(), input.end());
  const auto brace =
      std::find(repaired.rbegin(), repaired.rend(), std::byte{'}'});
  const auto length = static_cast<std::uint64_t>(repaired.rend() - brace);
  if (length > sizeof(length)) {
    const std::uint64_t header = length - sizeof(length);
    std::memcpy(repaired.data(), &header, sizeof(header));
    try_file(repaired);
  }
  return 0;
}
