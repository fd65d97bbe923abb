/// @file
/// Do `carve plan` and `carve relate` write, print and exit as they say, with a
/// kernel run on the files between them?
#include <nlohmann/json.hpp>

#include "catch.hpp"
#include "program/relation_kernels.hpp"
#include "program/shell.hpp"

using namespace relation_kernels;
using fixtures::carve_with;
using fixtures::contains;
using fixtures::result;

namespace {

/// What a kernel's author does between the two commands.
void add_outputs(const std::string& path, carve::index_t chunk) {
  const auto file = carve::safetensors::file::open(path);
  fixtures::editable e = fixtures::editable::of(file);
  for (const judged_tensor& x : replayed(read_dump(file), chunk)) {
    const auto& shape = x.values.shape;
    e.tensors[x.name] = {x.dtype, {shape.begin(), shape.end()}, x.values.data};
  }
  e.writer().save(path);
}

}  // namespace

TEST_CASE("plan writes inputs, relate judges what a kernel made of them") {
  const fixtures::scratch folder;
  const std::string dump = folder / "dump.safetensors", to = folder / "plan";
  fixtures::editable file = inputs("gdn", 2, 40, 2, 2, 8, 6);
  // Laid out in another way, and named otherwise.
  file.tensors["h0"] = file.tensors.at("initial_state");
  file.tensors.erase("initial_state");
  file.metadata["rename"] = "h0=initial_state";
  file.writer().save(dump);
  const result planned =
      carve_with("plan alone '" + dump + "' -o '" + to + "' 2>&1");
  CAPTURE(planned.out);
  REQUIRE(planned.exit == 0);
  const std::string relate = "relate alone '" + to + "/among.safetensors' '" +
                             to + "/sequence.safetensors' '" + to +
                             "/head.safetensors'";
  REQUIRE(contains(planned.out, "  carve " + relate + "\n"));

  // Without outputs there is nothing to compare.
  const result early = carve_with(relate + " 2>&1");
  REQUIRE(early.exit == 2);
  REQUIRE(contains(early.out, "outputs: expected o, final_state"));

  for (const char* name : {"among", "sequence", "head"}) {
    add_outputs(to + "/" + name + ".safetensors", 64);
  }
  const result same = carve_with(relate + " 2>&1");
  CAPTURE(same.out);
  REQUIRE(same.exit == 0);
  REQUIRE(contains(same.out, "holds, bit for bit"));
  REQUIRE(contains(same.out, "dinitial_state"));

  add_outputs(to + "/sequence.safetensors", 16);
  const result near = carve_with(relate + " --json - 2>&1");
  REQUIRE(near.exit == 0);
  const auto json = nlohmann::json::parse(near.out);
  REQUIRE(json.at("holds") == true);
  REQUIRE(json.at("bit_for_bit") == false);
  REQUIRE(json.at("within_the_unit") == true);
  REQUIRE(json.at("tensors").size() > 4);
  REQUIRE(carve_with(relate + " --bits >/dev/null 2>&1").exit == 1);

  fixtures::editable e = fixtures::editable::of(
      carve::safetensors::file::open(to + "/head.safetensors"));
  e.tensors.at("o").values[3] += 8;
  e.writer().save(to + "/head.safetensors");
  const result far = carve_with(relate + " 2>&1");
  REQUIRE(far.exit == 1);
  REQUIRE(contains(far.out, "o: first at sequence 0, token 0, head 0"));
  REQUIRE(contains(far.out, "does not hold"));

  // What a kernel returned is not written over.
  const result again =
      carve_with("plan alone '" + dump + "' -o '" + to + "' 2>&1");
  REQUIRE(again.exit == 2);
  REQUIRE(contains(again.out, "exists"));
}

TEST_CASE("every relation has a plan that its own command then takes") {
  for (const relation& r : relations()) {
    const fixtures::scratch folder;
    inputs("gdn2", 1, 40, 2, 2, 8, 6).writer().save(folder / "d");
    const std::string name(r.name);
    const result planned = carve_with("plan " + name + " '" + (folder / "d") +
                                      "' -o '" + (folder / "p") + "' 2>&1");
    CAPTURE(planned.out);
    REQUIRE(planned.exit == 0);
    const std::size_t at = planned.out.rfind("carve relate");
    REQUIRE(at != std::string::npos);
    // No outputs yet, and pieces have no start states; but nothing else.
    const std::string words = planned.out.substr(at + 6);
    const result early =
        carve_with(words.substr(0, words.size() - 1) + " 2>&1");
    CAPTURE(early.out);
    REQUIRE(early.exit == 2);
    REQUIRE((contains(early.out, "outputs: expected") ||
             (r.hands_states_on && contains(early.out, "final_state"))));
  }
}

TEST_CASE("a relation that there is not is refused by name") {
  const result r = carve_with("relate same a b 2>&1");
  REQUIRE(r.exit == 2);
  REQUIRE(contains(r.out, "relation: expected one of"));
}
