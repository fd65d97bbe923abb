/// What does the page that answers back show before it is asked?
#include "../answers/answers.hpp"

#include "svg.hpp"

namespace {

double rms(const std::vector<double>& x) {
  double sum = 0;
  for (const double one : x) sum += one * one;
  return std::sqrt(sum / static_cast<double>(x.size()));
}

}  // namespace

int main(int argc, char** argv) {
  using namespace figures;
  const made to(argc, argv);
  answers::choice c;
  c.inverse = 2;
  const answers::answer a = answers::run(c);
  curve sound{"sound kernel", {}, {}, 1}, chosen{"your kernel", {}, {}, 2};
  curve size{"norm of the state", {}, {}, 6, true};
  for (answers::index_t t = 0; t < answers::tokens; ++t) {
    for (curve* x : {&sound, &chosen, &size}) {
      x->x.push_back(static_cast<double>(t));
    }
    sound.y.push_back(a.sound[t]), chosen.y.push_back(a.chosen[t]);
    size.y.push_back(a.size[t]);
  }
  svg drawing(480, 350, "Relative error of two kernels over the tokens");
  plot(drawing, 64, 34, 396, 220,
       {0, 127, false, {0, 32, 64, 96, 127}, "token"},
       {1e-8,
        1e8,
        true,
        {1e-8, 1e-4, 1, 1e4, 1e8},
        "relative error of the output"},
       {size, sound, chosen});
  legend(drawing, 84, 312, {sound, chosen, size});
  to.drawing("answers", drawing.str());
  to.value("answers.ratio", number(rms(a.chosen) / rms(a.sound), 2));
  // What the page must show when its controls stand so: the choice, the exact
  // output and the two kernels' errors.
  std::string shown;
  for (const answers::choice& one :
       std::vector<answers::choice>{c,
                                    {0, 0.5, 0.9, 1.5, 32, 0, 2, false, false},
                                    {1, 0.05, 0.5, 2, 16, 1, 1, false, false},
                                    {1, 0, 0.7, 1, 128, 3, 0, false, false},
                                    {2, 0.3, 0.1, 0.5, 4, 2, 0, true, false},
                                    {2, 1, 0.6, 1.75, 64, 0, 2, false, true},
                                    {0, 3, 0, 1, 8, 3, 1, false, true}}) {
    const answers::answer is = answers::run(one);
    char line[160];
    std::snprintf(line, sizeof line,
                  "%d %g %g %g %d %d %d %d %d %.15g %.6g %.6g\n", one.family,
                  one.decay, one.alike, one.erase, one.chunk, one.format,
                  one.inverse, one.factored, one.cut, is.exact, rms(is.sound),
                  rms(is.chosen));
    shown += line;
  }
  to.value("answers.shown", shown);
  // With nothing spoilt the two kernels are one.
  c.inverse = 0;
  const answers::answer same = answers::run(c);
  must(same.sound == same.chosen, "nothing spoilt: the same kernel");
  for (int family = 0; family < 3; ++family) {
    c.family = family, c.format = 0, c.alike = 0.2, c.chunk = 16;
    const answers::answer fine = answers::run(c);
    double most = 0;
    for (const double e : fine.chosen) most = std::max(most, e);
    must(most < 1e-5, "in fp32 every family equals the recurrence");
  }
}
