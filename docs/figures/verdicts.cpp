/// How near is a sound kernel to its unit?  The reports that `carve verify
/// --json` wrote of the bundled dumps (the arguments after the folder), drawn:
/// each tensor's error against the error that its formats explain.
#include <fstream>
#include <nlohmann/json.hpp>

#include "svg.hpp"

int main(int argc, char** argv) {
  using namespace figures;
  must(argc > 2, "usage: FOLDER REPORT.json...");
  const made to(2, argv);
  std::vector<curve> clouds;
  std::vector<std::vector<std::string>> defects{
      {"dump", "tensor", "what carve verify says"}};
  double least = 1e9, most = 0;
  for (int n = 2; n < argc; ++n) {
    std::ifstream in(argv[n]);
    must(bool(in), std::string("cannot read ") + argv[n]);
    const nlohmann::json report = nlohmann::json::parse(in);
    const std::string path = report.at("file");
    std::string name = path.substr(path.find_last_of('/') + 1);
    name = name.substr(0, name.find("_bf16"));
    name = name.substr(0, name.find(".safetensors"));
    curve cloud{name, {}, {}, n - 1, false, true};
    if (path.find("/ports/") != std::string::npos) {
      must(report.at("verdict") == "fail", name + " fails");
      for (const auto& tensor : report.at("tensors")) {
        if (!tensor.contains("reason")) continue;
        std::string words = name.substr(name.find('_') + 1);
        std::replace(words.begin(), words.end(), '_', ' ');
        defects.push_back(
            {words, tensor.at("name"), tensor.at("reason").get<std::string>()});
      }
      continue;
    }
    must(report.at("verdict") == "pass", name + " passes");
    must(report.at("threshold") == 1.5, "the limit is 1.5");
    for (const auto& tensor : report.at("tensors")) {
      const double error = tensor.at("rel_rms"), ratio = tensor.at("ratio");
      if (name == "gdn2" && tensor.at("name") == "o") {
        to.value("verdicts.gdn2.o", scientific(error));
      }
      cloud.x.push_back(error / ratio);
      cloud.y.push_back(error);
      least = std::min(least, ratio), most = std::max(most, ratio);
    }
    clouds.push_back(cloud);
  }
  svg drawing(480, 450, "Kernel errors against their units");
  const double low = 3e-4, high = 2e-2;
  const scale axis{low, high, true, {5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2}, ""};
  scale x = axis, y = axis;
  x.title = "the unit: error that the formats explain";
  y.title = "error of the kernel's tensor, relative RMS";
  std::vector<curve> lines{
      {"ratio 1", {low, high}, {low, high}, 6, false},
      {"ratio 1.5, the limit", {low, high / 1.5}, {1.5 * low, high}, 2, true}};
  plot(drawing, 64, 34, 396, 270, x, y, lines);
  const auto at = [&](double v) { return axis.at(v); };
  for (std::size_t n = 0; n < clouds.size(); ++n) {
    const std::string colour = "f" + std::to_string(n % 6 + 1);
    for (std::size_t i = 0; i < clouds[n].x.size(); ++i) {
      const double u = at(clouds[n].x[i]), v = at(clouds[n].y[i]);
      must(u >= 0 && u <= 1 && v >= 0 && v <= 1, "the axes hold every tensor");
      drawing.circle(64 + 396 * u, 34 + 270 * (1 - v), 3.5, colour);
    }
    const double lx = 20 + 160 * static_cast<double>(n % 3);
    const double ly = 372 + 20 * static_cast<double>(n / 3);
    drawing.circle(lx, ly - 4, 4, colour);
    drawing.text(lx + 10, ly, clouds[n].name);
  }
  drawing.line(20, 412, 42, 412, "s6");
  drawing.text(48, 416, "ratio 1");
  drawing.line(180, 412, 202, 412, "s2 dash");
  drawing.text(208, 416, "ratio 1.5, the limit");
  to.drawing("verdicts", drawing.str());
  // Sentences, not numbers.
  std::string said = table(defects);
  said.replace(said.find("|---|--:|--:|"), 13, "|---|---|---|");
  to.value("ports.table", said);
  to.value("verdicts.least", places(least, 2));
  to.value("verdicts.most", places(most, 2));
  to.value("verdicts.kernels", std::to_string(clouds.size()));
}
