/// @file
/// Does the safetensors reader read what is right, refuse what is wrong and
/// say why; and does the writer's file read back the same?
#include "safetensors.hpp"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "output.hpp"

namespace fs = std::filesystem;
namespace st = carve::safetensors;
using st::dtype;

namespace {

/// What `action` throws, as text; "" when it does not.
template <class Action>
std::string message(Action action) {
  try {
    action();
  } catch (const carve::error& e) {
    return e.what();
  }
  return "";
}

std::vector<std::byte> to_bytes(const std::string& text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

/// A file of this header and `data` zero bytes.
std::vector<std::byte> file_of(const std::string& header, std::size_t data) {
  std::string text(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(text.data(), &length, sizeof(length));
  return to_bytes(text + header + std::string(data, '\0'));
}

std::string refusal(const std::string& header, std::size_t data) {
  const auto bytes = file_of(header, data);
  return message([&] { st::file::parse(bytes); });
}

/// A header of one tensor x.
std::string one(const std::string& type, const std::string& shape,
                const std::string& offsets) {
  return R"({"x":{"dtype":")" + type + R"(","shape":)" + shape +
         R"(,"data_offsets":)" + offsets + "}}";
}

/// A new folder, removed with all in it at the end of the test.
class scratch {
 public:
  scratch() {
    std::string pattern = (fs::temp_directory_path() / "carve.XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  scratch(const scratch&) = delete;
  scratch& operator=(const scratch&) = delete;
  ~scratch() { fs::remove_all(path_); }
  fs::path operator/(const std::string& name) const { return path_ / name; }
  std::size_t count() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(path_), fs::directory_iterator()));
  }

 private:
  fs::path path_;
};

}  // namespace

TEST_CASE("a file too short or with a wrong header length is refused") {
  CHECK(message([] { st::file::parse({}); }) ==
        "a file of 0 bytes is too short to be a safetensors file");
  CHECK(message([] { st::file::parse(to_bytes("1234567")); }) ==
        "a file of 7 bytes is too short to be a safetensors file");
  CHECK(message([] { st::file::parse(to_bytes("PQ\3\4 not this format")); }) ==
        "the header's length 8390045714599858512 exceeds the format's limit of "
        "100000000; is this a safetensors file?");
  auto bytes = file_of("{}", 0);
  bytes[0] = std::byte{3};
  CHECK(message([&] { st::file::parse(bytes); }) ==
        "the header's length 3 exceeds the 2 bytes that follow");
  bytes[0] = std::byte{0};
  CHECK(message([&] { st::file::parse(bytes); }) ==
        "the header does not begin with {");
}

TEST_CASE("a header that is not a JSON object is refused") {
  CHECK(refusal("[]", 0) == "the header does not begin with {");
  CHECK(refusal(" {}", 0) == "the header does not begin with {");
  CHECK(refusal(std::string("{}\0{", 4), 0) == "the header has a zero byte");
  for (const char* header :
       {"{", R"({"x")", R"({"x":})", "{}{}", R"({"x"::1})", "{'x':1}",
        R"({"x":1e999})", "{\"\xff\":1}", "{}//"}) {
    CAPTURE(header);
    CHECK(refusal(header, 0).starts_with("the header is not valid JSON: "));
  }
}

TEST_CASE("a header of another structure is refused") {
  CHECK(refusal(R"({"x":1})", 0) == "x: expected an object, got the number 1");
  CHECK(refusal(R"({"x":[]})", 0) == "x: expected an object, got an array");
  CHECK(refusal(R"({"x":null})", 0) == "x: expected an object, got null");
  CHECK(refusal(R"({"x":true})", 0) == "x: expected an object, got a boolean");
  CHECK(refusal(R"({"x":"y"})", 0) ==
        R"(x: expected an object, got the string "y")");
  CHECK(refusal(R"({"x":{"dtype":3}})", 0) ==
        "x: dtype expected a string, got the number 3");
  CHECK(refusal(R"({"x":{"shape":3}})", 0) ==
        "x: shape expected an array, got the number 3");
  CHECK(refusal(R"({"x":{"shape":{}}})", 0) ==
        "x: shape expected an array, got an object");
  CHECK(
      refusal(R"({"x":{"strides":[1]}})", 0) ==
      R"(x: unknown member "strides", expected dtype, shape and data_offsets)");
  CHECK(refusal(R"({"x":{"dtype":"F32","shape":[1]}})", 4) ==
        R"(x: member "data_offsets" is missing)");
  CHECK(refusal(R"({"x":{}})", 0) == R"(x: member "dtype" is missing)");
}

TEST_CASE("deep nesting is refused at its second level") {
  const std::string deep(1'000'000, '[');
  CHECK(refusal(R"({"x":)" + deep, 0) == "x: expected an object, got an array");
  CHECK(refusal(R"({"x":{"shape":)" + deep, 0) ==
        "x: shape expected non-negative integers, got an array");
}

TEST_CASE("a repeated name or member is refused") {
  const std::string x =
      R"("x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  CHECK(refusal("{" + x + "," + x + "}", 4) ==
        "x: appears twice in the header");
  CHECK(refusal(R"({"__metadata__":{},"__metadata__":{}})", 0) ==
        "__metadata__: appears twice in the header");
  // The same name, once written with an escape.
  CHECK(
      refusal(R"({"\u0078":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},)" +
                  x + "}",
              4) == "x: appears twice in the header");
  CHECK(refusal(R"({"x":{"dtype":"F32","dtype":"F32"}})", 0) ==
        R"(x: member "dtype" appears twice)");
  CHECK(refusal(R"({"__metadata__":{"a":"1","a":"2"}})", 0) ==
        R"(__metadata__: member "a" appears twice)");
}

TEST_CASE("numbers and booleans in the metadata are their text") {
  const auto bytes = file_of(
      R"({"__metadata__":{"a":0.50,"b":-3,"c":7,"d":true,"e":"x"}})", 0);
  CHECK(st::file::parse(bytes).metadata() ==
        std::map<std::string, std::string>{
            {"a", "0.50"}, {"b", "-3"}, {"c", "7"}, {"d", "true"}, {"e", "x"}});
}

TEST_CASE("metadata other than words and numbers is refused") {
  CHECK(refusal(R"({"__metadata__":{"scale":null}})", 0) ==
        R"(__metadata__: "scale" expected a string, got null)");
  CHECK(refusal(R"({"__metadata__":{"a":{}}})", 0) ==
        R"(__metadata__: "a" expected a string, got an object)");
  CHECK(refusal(R"({"__metadata__":"a"})", 0) ==
        R"(__metadata__: expected an object, got the string "a")");
}

TEST_CASE("an unknown dtype is refused") {
  CHECK(refusal(one("C64", "[1]", "[0,8]"), 8) ==
        "x: dtype \"C64\" is not supported, expected one of F64, F32, F16, "
        "BF16, F8_E4M3, F8_E5M2, I64, I32, I16, I8, U64, U32, U16, U8, BOOL");
  CHECK(refusal(one("f32", "[1]", "[0,4]"), 4)
            .starts_with("x: dtype \"f32\" is not supported"));
}

TEST_CASE("a shape that is no list of sizes is refused") {
  CHECK(refusal(one("F32", "[-1]", "[0,4]"), 4) ==
        "x: shape expected non-negative integers, got a negative number");
  CHECK(refusal(one("F32", "[1.0]", "[0,4]"), 4) ==
        "x: shape expected non-negative integers, got the number 1.0");
  CHECK(refusal(one("F32", "[\"1\"]", "[0,4]"), 4) ==
        R"(x: shape expected non-negative integers, got the string "1")");
  CHECK(refusal(one("F32", "[18446744073709551615]", "[0,4]"), 4) ==
        "x: shape has an axis of 18446744073709551615, which overflows");
  CHECK(refusal(one("F32", "[18446744073709551616]", "[0,4]"), 4) ==
        "x: shape expected non-negative integers, got the number "
        "18446744073709551616");
  std::string many = "[1";
  for (int i = 0; i < 64; ++i) many += ",1";
  CHECK(refusal(one("F32", many + "]", "[0,4]"), 4) ==
        "x: shape has more than 64 axes");
}

TEST_CASE("a shape whose product overflows is refused") {
  // Modulo 2^64 each of these would fit its four bytes or none.
  CHECK(refusal(one("F32", "[4294967296,4294967296]", "[0,0]"), 0) ==
        "x: shape [4294967296,4294967296] of F32 overflows a byte count");
  CHECK(refusal(one("F32", "[4611686018427387905]", "[0,4]"), 4) ==
        "x: shape [4611686018427387905] of F32 overflows a byte count");
  CHECK(refusal(one("F64", "[0,4294967296,4294967296]", "[0,0]"), 0) ==
        "x: shape [0,4294967296,4294967296] of F64 overflows a byte count");
}

TEST_CASE("a byte range that is wrong is refused") {
  CHECK(refusal(one("F32", "[1]", "[0]"), 4) ==
        "x: data_offsets has 1 numbers, expected two");
  CHECK(refusal(one("F32", "[1]", "[0,4,8]"), 4) ==
        "x: data_offsets has more than two numbers");
  CHECK(refusal(one("F32", "[1]", "[0,-4]"), 4) ==
        "x: data_offsets expected non-negative integers, got a negative "
        "number");
  CHECK(refusal(one("F32", "[1]", "[4,0]"), 4) ==
        "x: data_offsets [4,0) do not lie in the 4 bytes of data");
  CHECK(refusal(one("F32", "[1]", "[1,5]"), 4) ==
        "x: data_offsets [1,5) do not lie in the 4 bytes of data");
  CHECK(
      refusal(one("F32", "[1]", "[18446744073709551612,18446744073709551615]"),
              4) ==
      "x: data_offsets [18446744073709551612,18446744073709551615) do not "
      "lie in the 4 bytes of data");
  CHECK(refusal(one("F32", "[2,3]", "[0,20]"), 20) ==
        "x: data_offsets [0,20) hold 20 bytes, F32[2,3] has 24");
  CHECK(refusal(one("F32", "[2,3]", "[0,28]"), 28) ==
        "x: data_offsets [0,28) hold 28 bytes, F32[2,3] has 24");
  CHECK(refusal(one("F32", "[]", "[0,8]"), 8) ==
        "x: data_offsets [0,8) hold 8 bytes, F32[] has 4");
}

TEST_CASE("ranges that overlap or leave bytes unused are refused") {
  const auto two = [](const std::string& a, const std::string& b) {
    return R"({"a":{"dtype":"F32","shape":[2],"data_offsets":)" + a +
           R"(},"b":{"dtype":"F32","shape":[2],"data_offsets":)" + b + "}}";
  };
  CHECK(refusal(two("[0,8]", "[8,16]"), 16) == "");
  CHECK(refusal(two("[8,16]", "[0,8]"), 16) == "");
  CHECK(refusal(two("[0,8]", "[4,12]"), 12) ==
        "b: data_offsets [4,12) overlap those of a");
  CHECK(refusal(two("[0,8]", "[0,8]"), 8) ==
        "b: data_offsets [0,8) overlap those of a");
  CHECK(refusal(two("[0,8]", "[12,20]"), 20) ==
        "bytes [8,12) of the data belong to no tensor");
  CHECK(refusal(two("[0,8]", "[8,16]"), 17) ==
        "bytes [16,17) of the data belong to no tensor");
  CHECK(refusal(two("[4,12]", "[12,20]"), 20) ==
        "bytes [0,4) of the data belong to no tensor");
  CHECK(refusal("{}", 1) == "bytes [0,1) of the data belong to no tensor");
}

TEST_CASE("messages show hostile names harmlessly and cut long ones") {
  CHECK(refusal(R"({"\u001b[31m\"\u00e9":1})", 0) ==
        "\\x1b[31m\\\"\\xc3\\xa9: expected an object, got the number 1");
  CHECK(refusal("{\"" + std::string(1000, 'n') + "\":1}", 0) ==
        std::string(100, 'n') + "...: expected an object, got the number 1");
}

TEST_CASE("scalars, empty tensors and an empty file are legal") {
  CHECK(st::file::parse(file_of("{}", 0)).names().empty());
  const auto bytes =
      file_of(R"({"e":{"dtype":"F64","shape":[3,0],"data_offsets":[4,4]},)"
              R"("s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   )",
              4);
  const auto f = st::file::parse(bytes);
  CHECK(f.names() == std::vector<std::string>{"e", "s"});
  CHECK(f.info("s").shape.empty());
  CHECK(f.info("s").elements == 1);
  CHECK(f.as_double("s") == std::vector<double>{0});
  CHECK(f.info("e").elements == 0);
  CHECK(f.as_double("e").empty());
}

TEST_CASE("what is written reads back the same") {
  constexpr double inf = std::numeric_limits<double>::infinity();
  const std::vector<double> values = {0.1, -0.0, 1e300, inf, 0x1p-24, -3};
  st::writer w;
  w.set_metadata("family", "gdn2");
  w.set_metadata("scale", "0.125");
  w.add("h", dtype::f16, {6}, values);
  w.add("d", dtype::f64, {2, 3}, values);
  w.add("b", dtype::bf16, {3, 2}, values);
  w.add("f", dtype::f32, {6, 1}, values);
  const std::vector<std::int64_t> offsets = {0, -1, INT64_MAX, INT64_MIN};
  w.add_int64("i", {4}, offsets);
  const auto bytes = w.serialize();
  const auto f = st::file::parse(bytes);

  CHECK(f.names() == std::vector<std::string>{"b", "d", "f", "h", "i"});
  CHECK(f.metadata() == std::map<std::string, std::string>{{"family", "gdn2"},
                                                           {"scale", "0.125"}});
  CHECK(f.info("d").dtype == dtype::f64);
  CHECK(f.info("d").shape == std::vector<std::int64_t>{2, 3});
  CHECK(f.info("d").elements == 6);
  CHECK(f.as_double("d") == values);
  CHECK(std::signbit(f.as_double("d")[1]));
  CHECK(f.as_double("f") ==
        std::vector<double>{double{0.1f}, 0, inf, inf, 0x1p-24, -3});
  CHECK(f.as_double("h") ==
        std::vector<double>{0x1.998p-4, 0, inf, inf, 0x1p-24, -3});
  CHECK(f.as_double("b") ==
        std::vector<double>{0x1.9ap-4, 0, inf, inf, 0x1p-24, -3});
  CHECK(f.as_float("b") ==
        std::vector<float>{0x1.9ap-4f, 0, INFINITY, INFINITY, 0x1p-24f, -3});
  CHECK(f.as_int64("i") == offsets);
}

TEST_CASE("tensors are aligned to their elements in the written file") {
  st::writer w;
  const std::vector<double> three = {1, 2, 3};
  w.add("a", dtype::bf16, {3}, three);
  w.add("b", dtype::f64, {3}, three);
  w.add("c", dtype::f32, {3}, three);
  const auto bytes = w.serialize();
  const auto f = st::file::parse(bytes);
  for (const auto& name : f.names()) {
    std::uint64_t header = 0;
    std::memcpy(&header, bytes.data(), sizeof(header));
    CHECK((sizeof(header) + header + f.info(name).begin) %
              st::item_size(f.info(name).dtype) ==
          0);
  }
}

TEST_CASE("floats keep every bit, a signalling NaN's too") {
  const std::vector<std::uint32_t> words = {0x7f800001u, 0xffc12345u, 1u,
                                            0x80000000u};
  st::writer w;
  w.add_bytes("x", dtype::f32, {4}, std::as_bytes(std::span(words)));
  const auto bytes = w.serialize();
  const auto floats = st::file::parse(bytes).as_float("x");
  CHECK(std::memcmp(floats.data(), words.data(), 16) == 0);
}

TEST_CASE("integers become doubles exactly or not at all") {
  st::writer w;
  const std::vector<std::int64_t> exact = {-(1LL << 53), 1LL << 62, 0};
  const std::vector<std::int64_t> odd = {(1LL << 53) + 1};
  const std::vector<std::int64_t> top = {INT64_MAX};
  const std::vector<std::int32_t> narrow = {-7, INT32_MAX};
  w.add_int64("exact", {3}, exact);
  w.add_int64("odd", {1}, odd);
  w.add_int64("top", {1}, top);
  w.add_bytes("narrow", dtype::i32, {2}, std::as_bytes(std::span(narrow)));
  const auto bytes = w.serialize();
  const auto f = st::file::parse(bytes);
  CHECK(f.as_double("exact") == std::vector<double>{-0x1p53, 0x1p62, 0});
  CHECK(f.as_double("narrow") == std::vector<double>{-7, 2147483647});
  CHECK(f.as_int64("narrow") == std::vector<std::int64_t>{-7, INT32_MAX});
  CHECK(message([&] { f.as_double("odd"); }) ==
        "odd: the integer 9007199254740993 is not a double");
  CHECK(message([&] { f.as_double("top"); }) ==
        "top: the integer 9223372036854775807 is not a double");
}

TEST_CASE("asking for a missing tensor or another type is an error") {
  st::writer w;
  w.add("x", dtype::f64, {1}, std::vector<double>{1});
  w.add_int64("n", {1}, std::vector<std::int64_t>{1});
  const auto bytes = w.serialize();
  const auto f = st::file::parse(bytes);
  CHECK(f.contains("x"));
  CHECK_FALSE(f.contains("y"));
  CHECK(message([&] { f.info("y"); }) == "y: the file has no such tensor");
  CHECK(message([&] { f.as_double("y"); }) == "y: the file has no such tensor");
  CHECK(message([&] { f.as_float("x"); }) ==
        "x: expected F32, F16, BF16 or an 8-bit float, got F64");
  CHECK(message([&] { f.as_int64("x"); }) == "x: expected integers, got F64");
  CHECK(message([&] { f.as_float("n"); }) ==
        "n: expected F32, F16, BF16 or an 8-bit float, got I64");
}

TEST_CASE("the writer refuses what would not read back") {
  st::writer w;
  const std::vector<double> two = {1, 2};
  w.add("x", dtype::f32, {2}, two);
  CHECK(message([&] { w.add("x", dtype::f32, {2}, two); }) ==
        "x: is already in the file");
  CHECK(message([&] { w.add("__metadata__", dtype::f32, {2}, two); }) ==
        "__metadata__: is no name for a tensor");
  CHECK(message([&] { w.add("y", dtype::f32, {3}, two); }) ==
        "y: [3] has 3 elements, got 2");
  CHECK(message([&] {
          w.add("y", dtype::f32, {-2, -1}, two);
        }) == "y: shape [-2,-1] has a negative axis");
  CHECK(message([&] { w.add("y", dtype::i64, {2}, two); }) ==
        "y: expected F64, F32, F16 or BF16, got I64");
  CHECK(message([&] {
          w.add_bytes("y", dtype::f64, {1}, std::as_bytes(std::span("abc")));
        }) == "y: 4 bytes are no whole number of F64 elements");
  CHECK(st::file::parse(w.serialize()).names() ==
        std::vector<std::string>{"x"});
  w.set_metadata("note", "\xff");
  CHECK(message([&] { w.serialize(); }) ==
        "a tensor's name or a metadata string is not UTF-8");
}

TEST_CASE("names and metadata of any UTF-8 survive the file") {
  st::writer w;
  const std::string name = "a\"\\\n\x01 \xc3\xa9";
  w.add(name, dtype::f64, {}, std::vector<double>{2});
  w.set_metadata(name, name);
  const auto bytes = w.serialize();
  const auto f = st::file::parse(bytes);
  CHECK(f.names() == std::vector<std::string>{name});
  CHECK(f.metadata().at(name) == name);
}

TEST_CASE("saving replaces a file whole and leaves nothing beside it") {
  const scratch folder;
  const fs::path path = folder / "x.safetensors";
  for (double value : {1.0, 2.0}) {
    st::writer w;
    w.add("x", dtype::f64, {1}, std::vector<double>{value});
    w.save(path);
    CHECK(st::file::open(path).as_double("x") == std::vector<double>{value});
    CHECK(folder.count() == 1);
  }
}

TEST_CASE("a file that is open stays readable while it is replaced") {
  const scratch folder;
  const fs::path path = folder / "x.safetensors";
  st::writer first, second;
  first.add("x", dtype::f64, {1}, std::vector<double>{1});
  second.add("x", dtype::f64, {1}, std::vector<double>{2});
  first.save(path);
  const auto f = st::file::open(path);
  second.save(path);
  CHECK(f.as_double("x") == std::vector<double>{1});
}

TEST_CASE("saving writes through a link and never replaces a pipe") {
  const scratch folder;
  st::writer w;
  w.add("x", dtype::f64, {1}, std::vector<double>{1});
  w.save(folder / "target");
  fs::create_symlink("target", folder / "link");
  w.save(folder / "link");
  CHECK(fs::is_symlink(folder / "link"));

  const fs::path pipe = folder / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(message([&] { w.save(pipe); }) ==
        pipe.string() + ": cannot be written: No such device or address");
  CHECK(fs::is_fifo(pipe));
  CHECK(message([&] { w.save("/dev/full"); }) ==
        "/dev/full: cannot be written: No space left on device");
  const fs::path nowhere = folder / "none" / "x";
  CHECK(message([&] { w.save(nowhere); }) ==
        nowhere.string() + ": cannot be written: No such file or directory");
  CHECK(folder.count() == 3);
}

namespace {

/// Sends `content` through a new pipe and reads it as a file.
std::string through_pipe(const std::vector<std::byte>& content,
                         const std::function<void(const st::file&)>& use) {
  const scratch folder;
  const fs::path pipe = folder / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  std::thread sender([&] {
    std::ofstream(pipe, std::ios::binary)
        .write(reinterpret_cast<const char*>(content.data()),
               static_cast<std::streamsize>(content.size()));
  });
  std::string said = message([&] { use(st::file::open(pipe)); });
  sender.join();
  const std::string path = pipe.string() + ": ";
  return said.starts_with(path) ? said.substr(path.size()) : said;
}

/// Files may be at most so long while this lives; a longer one is an error.
class file_size_limit {
 public:
  explicit file_size_limit(rlim_t bytes)
      : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  file_size_limit(const file_size_limit&) = delete;
  file_size_limit& operator=(const file_size_limit&) = delete;
  ~file_size_limit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit old_ = {};
};

TEST_CASE("tensors in memory read like those of a file") {
  // [2,3] column by column, and the same backwards along its second axis.
  const std::vector<std::uint16_t> bits{0x3f80, 0x4080, 0x4000,
                                        0x40a0, 0x4040, 0x40c0};
  const auto* const data = reinterpret_cast<const std::byte*>(bits.data());
  const std::vector<std::int64_t> offsets{0, 2};
  const auto f =
      st::file::of({{"x", st::dtype::bf16, {2, 3}, {1, 2}, data},
                    {"y", st::dtype::bf16, {2, 3}, {1, -2}, data + 8},
                    {"z", st::dtype::bf16, {2, 3}, {}, data},
                    {"n",
                     st::dtype::i64,
                     {2},
                     {1},
                     reinterpret_cast<const std::byte*>(offsets.data())}},
                   {{"family", "gdn"}});
  CHECK(f.names() == std::vector<std::string>{"n", "x", "y", "z"});
  CHECK(f.metadata().at("family") == "gdn");
  CHECK(f.as_double("x") == std::vector<double>{1, 2, 3, 4, 5, 6});
  CHECK(f.as_double("y") == std::vector<double>{3, 2, 1, 6, 5, 4});
  CHECK(f.as_float("z") == std::vector<float>{1, 4, 2, 5, 3, 6});
  CHECK(f.as_int64("n") == offsets);
  CHECK(f.bytes("x").size() == 12);

  const auto of = [](std::vector<st::memory_tensor> all) {
    return message([&] { st::file::of(all, {}); });
  };
  CHECK(of({{"x", st::dtype::f64, {2}, {1, 1}, data}}) ==
        "x: expected 1 strides, got 2");
  CHECK(of({{"x", st::dtype::f64, {2}, {}, nullptr}}) ==
        "x: expected data, got a null pointer");
  CHECK(of({{"x", st::dtype::f64, {-2}, {}, data}}) ==
        "x: shape [-2] has a negative axis");
  CHECK(of({{"x", st::dtype::bf16, {2}, {}, data},
            {"x", st::dtype::bf16, {2}, {}, data}}) ==
        "x: is already among the tensors");
}

}  // namespace

TEST_CASE("a failed save leaves the old file and nothing beside it") {
  const scratch folder;
  const fs::path path = folder / "x.safetensors";
  st::writer small, large;
  small.add("x", dtype::f64, {1}, std::vector<double>{1});
  large.add("x", dtype::f64, {4096}, std::vector<double>(4096, 2));
  small.save(path);
  {
    const file_size_limit limit(8192);
    CHECK(message([&] { large.save(path); }) ==
          path.string() + ": cannot be written: File too large");
    CHECK(message([&] { large.save(folder / "new"); }) ==
          (folder / "new").string() + ": cannot be written: File too large");
  }
  CHECK(st::file::open(path).as_double("x") == std::vector<double>{1});
  CHECK(folder.count() == 1);
}

TEST_CASE("a folder is no place to write to, said before the work") {
  const scratch folder;
  const fs::path path = folder / "x";
  fs::create_directory(path);
  CHECK(message([&] { carve::check_output(path); }) ==
        path.string() + ": cannot be written: Is a directory");
}

TEST_CASE("a file that shrinks while it is read is an error") {
  const scratch folder;
  const fs::path path = folder / "x.safetensors";
  st::writer w;
  w.add("x", dtype::f64, {4096}, std::vector<double>(4096, 2));
  w.add("y", dtype::f32, {1}, std::vector<double>{2});
  w.save(path);
  const auto size = fs::file_size(path);
  const auto f = st::file::open(path);
  CHECK(f.as_double("y") == std::vector<double>{2});
  fs::resize_file(path, 4096);
  const std::string expected = "the file shrank while it was read: it had " +
                               std::to_string(size) +
                               " bytes, now it ends at 4096";
  CHECK(message([&] { f.as_double("x"); }) == "x: " + expected);
  CHECK(message([&] { f.bytes("x"); }) == "x: " + expected);
  CHECK(message([&] { f.as_float("y"); }).starts_with("y: the file shrank"));
}

TEST_CASE("a pipe is read like a file") {
  st::writer w;
  const std::vector<double> many(300'000, 3);
  w.add("x", dtype::f64, {300'000}, many);  // longer than one read
  w.add("y", dtype::f32, {1}, std::vector<double>{2});
  auto content = w.serialize();
  int used = 0;
  CHECK(through_pipe(content, [&](const st::file& f) {
          CHECK(f.as_double("x") == many);
          CHECK(f.as_double("y") == std::vector<double>{2});
          ++used;
        }) == "");
  CHECK(used == 1);
  const auto refuse = [](const st::file&) { FAIL("accepted"); };
  content.push_back({});
  CHECK(through_pipe(content, refuse) ==
        "expected 2400004 bytes of data, got more");
  content.resize(content.size() - 3);
  CHECK(through_pipe(content, refuse) ==
        "expected 2400004 bytes of data, got 2400002");
  content.resize(20);
  CHECK(through_pipe(content, refuse)
            .ends_with(" exceeds the 12 bytes that "
                       "follow"));
  // No size that a header claims is asked of the memory.
  CHECK(
      through_pipe(
          file_of(one("F32", "[1000000000000000]", "[0,4000000000000000]"), 8),
          refuse) == "expected 4000000000000000 bytes of data, got 8");
  CHECK(through_pipe(
            file_of(
                one("F32", "[1]", "[9223372036854775803,9223372036854775807]"),
                4),
            refuse) == "expected 9223372036854775807 bytes of data, got 4");
}

TEST_CASE("8-bit floats are read exactly") {
  // 1, the largest, the smallest, -1.75, a NaN.
  const std::vector<std::uint8_t> e4m3 = {0x38, 0x7e, 0x01, 0xbe, 0x7f};
  // 1, the largest, the smallest, -1.75, an infinity, a NaN.
  const std::vector<std::uint8_t> e5m2 = {0x3c, 0x7b, 0x01, 0xbf, 0x7c, 0x7d};
  st::writer w;
  w.add_bytes("x", dtype::f8_e4m3, {5}, std::as_bytes(std::span(e4m3)));
  w.add_bytes("y", dtype::f8_e5m2, {6}, std::as_bytes(std::span(e5m2)));
  const auto bytes = w.serialize();
  const auto f = st::file::parse(bytes);
  const auto x = f.as_double("x"), y = f.as_double("y");
  CHECK(std::vector(x.begin(), x.begin() + 4) ==
        std::vector<double>{1, 448, 0x1p-9, -1.75});
  CHECK(std::isnan(x[4]));
  CHECK(std::vector(y.begin(), y.begin() + 5) ==
        std::vector<double>{1, 57344, 0x1p-16, -1.75, INFINITY});
  CHECK(std::isnan(y[5]));
  // E5M2 is F16 without its last eight bits.
  for (int word = 0; word < 256; ++word) {
    const auto byte = static_cast<std::uint8_t>(word);
    st::writer one_word;
    one_word.add_bytes("x", dtype::f8_e5m2, {1},
                       std::as_bytes(std::span(&byte, 1)));
    const auto file = one_word.serialize();
    const double value = st::file::parse(file).as_double("x")[0];
    const double wide =
        carve::from_f16_bits(static_cast<std::uint16_t>(word << 8));
    CHECK((value == wide || (std::isnan(value) && std::isnan(wide))));
  }
}

TEST_CASE("integers of every width are read") {
  const std::vector<std::uint8_t> ones(8, 0xff);
  st::writer w;
  const std::vector<std::pair<dtype, double>> all = {
      {dtype::i64, -1}, {dtype::i32, -1},           {dtype::i16, -1},
      {dtype::i8, -1},  {dtype::u32, 4294967295.0}, {dtype::u16, 65535},
      {dtype::u8, 255}, {dtype::boolean, 255}};
  for (const auto& [type, value] : all) {
    w.add_bytes(std::string(st::dtype_name(type)), type, {1},
                std::as_bytes(std::span(ones.data(), st::item_size(type))));
  }
  w.add_bytes("U64", dtype::u64, {1}, std::as_bytes(std::span(ones)));
  const auto bytes = w.serialize();
  const auto f = st::file::parse(bytes);
  for (const auto& [type, value] : all) {
    const std::string name(st::dtype_name(type));
    CAPTURE(name);
    CHECK(f.as_double(name) == std::vector<double>{value});
    CHECK(f.as_int64(name) ==
          std::vector<std::int64_t>{static_cast<std::int64_t>(value)});
  }
  CHECK(message([&] { f.as_double("U64"); }) ==
        "U64: the integer 18446744073709551615 is not a double");
  CHECK(message([&] { f.as_int64("U64"); }) ==
        "U64: the integer 18446744073709551615 is above 2^63 - 1");
}

TEST_CASE("a file in another format is recognised and converted in words") {
  const scratch folder;
  const auto said = [&](const std::string& name, const std::string& head) {
    const fs::path path = folder / name;
    std::ofstream(path, std::ios::binary) << head << std::string(100, '\0');
    return message([&] { st::file::open(path); });
  };
  const auto saves = [&](const std::string& name, const std::string& message,
                         const std::string& is, const std::string& reads) {
    CAPTURE(message);
    const std::string path = (folder / name).string();
    const std::string stem = path.substr(0, path.rfind('.'));
    CHECK(message.starts_with(path + ": not safetensors but " + is));
    CHECK(message.find(reads + "(\"" + path + "\"") != message.npos);
    CHECK(message.find("s.save_file(") != message.npos);
    CHECK(message.find("\"" + stem + ".safetensors\", {\"family\": ") !=
          message.npos);
    CHECK(std::count(message.begin(), message.end(), '\n') == 2);
  };
  const std::string zip("PK\3\4\0\0", 6);
  saves("a.pt", said("a.pt", zip + "archive/data.pkl"), "a PyTorch file",
        "torch.load");
  saves("b.pth",
        said("b.pth",
             "\x80\2\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a"
             "\xa8\x50\x19."),
        "a PyTorch file", "torch.load");
  saves("c.npz", said("c.npz", zip + "q.npy"), "a NumPy archive", "np.load");
  saves("d.npy", said("d.npy", "\x93NUMPY\1"), "one NumPy array", "np.load");
  saves("e.h5", said("e.h5", "\x89HDF\r\n\x1a\n"), "an HDF5 file", "h5py.File");
  saves("f.gguf", said("f.gguf", std::string("GGUF\3\0\0\0", 8)), "a GGUF file",
        "gguf.GGUFReader");
  saves("g.pkl", said("g.pkl", "\x80\4\x95"), "a Python pickle",
        "pickle.load(open");
  CHECK(said("h.safetensors",
             "version https://git-lfs.github.com/spec/v1\noid") ==
        (folder / "h.safetensors").string() +
            ": not safetensors but a git-lfs pointer: the file itself was not "
            "fetched:\n  git lfs pull --include \"" +
            (folder / "h.safetensors").string() + "\"");
  CHECK(said("i.gz", "\x1f\x8b").find("zcat") != std::string::npos);
  CHECK(said("j", "<!DOCTYPE html>")
            .ends_with("a web page, not the file it "
                       "links to"));
  // A file without a dot in its name gets an ending, not its folder's.
  CHECK(said("k", "\x80\4\x95")
            .find("\"" + (folder / "k").string() + ".safetensors\"") !=
        std::string::npos);
}

TEST_CASE("an unreadable path is refused by name") {
  const scratch folder;
  const fs::path missing = folder / "missing";
  CHECK(message([&] { st::file::open(missing); }) ==
        missing.string() + ": cannot open: No such file or directory");
  const fs::path directory = folder / "directory";
  fs::create_directory(directory);
  CHECK(message([&] { st::file::open(directory); }) ==
        directory.string() + ": is a folder, expected a file");
  const fs::path empty = folder / "empty";
  std::ofstream(empty).close();
  CHECK(message([&] { st::file::open(empty); }) ==
        empty.string() +
            ": a file of 0 bytes is too short to be a safetensors file");
}

TEST_CASE("the bundled kernel dumps read in full") {
  int dumps = 0;
  for (const auto& item : fs::directory_iterator(CARVE_DUMPS)) {
    if (item.path().extension() != ".safetensors") continue;
    ++dumps;
    CAPTURE(item.path());
    const auto f = st::file::open(item.path());
    CHECK(f.metadata().at("library") == "flash-linear-attention");
    CHECK(f.info("q").shape == f.info("dq").shape);
    CHECK(f.info("final_state").dtype == dtype::f32);
    CHECK(f.info("o").dtype != dtype::f32);
    for (const auto& name : f.names()) {
      const auto values = f.as_double(name);
      REQUIRE(values.size() == f.info(name).elements);
      bool finite = true;
      for (double x : values) finite = finite && std::isfinite(x);
      CHECK(finite);
    }
  }
  CHECK(dumps >= 6);
}

TEST_CASE("a dump copied tensor by tensor is the same data") {
  const fs::path path = fs::path(CARVE_DUMPS) / "gdn2_bf16.safetensors";
  const auto f = st::file::open(path);
  st::writer w;
  for (const auto& [key, value] : f.metadata()) w.set_metadata(key, value);
  for (const auto& name : f.names()) {
    w.add_bytes(name, f.info(name).dtype, f.info(name).shape, f.bytes(name));
    // Values of a narrow format go through doubles and come back bit by bit.
    w.add(name + "'", f.info(name).dtype, f.info(name).shape,
          f.as_double(name));
  }
  const auto bytes = w.serialize();
  const auto copy = st::file::parse(bytes);
  CHECK(copy.metadata() == f.metadata());
  for (const auto& name : f.names()) {
    CAPTURE(name);
    const auto same = [&](const std::string& other) {
      const auto a = f.bytes(name), b = copy.bytes(other);
      return std::equal(a.begin(), a.end(), b.begin(), b.end());
    };
    CHECK(same(name));
    CHECK(same(name + "'"));
  }
}
