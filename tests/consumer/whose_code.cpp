// Which code does the README's example run?  With carve::reference the
// library's, which counts the heads that it walks; with the headers alone what
// this file's compiler makes of them.
#include <carve/carve.hpp>
#include <iostream>
#include <type_traits>
#ifdef CARVE_REFERENCE
#include <carve/dispatch.hpp>
#endif

int main() {
  carve::problem<double> p;
  p.family = carve::family::delta;
  p.in.q = p.in.k = {{1, 3, 2, 2}, {1, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1}};
  p.in.v = p.in.q;
  p.in.beta = {{1, 3, 2}, {1, 1, 1, 1, 0.5, 0.5}};
#ifdef CARVE_REFERENCE
  static_assert(std::is_same_v<carve::default_solver, carve::reference_solver>);
  const auto before = carve::dispatched_heads();
  carve::forward(p);
  const auto walked = carve::dispatched_heads() - before;
  std::cout << walked << " heads walked by carve::reference\n";
  return walked == 2 ? 0 : 1;
#else
  static_assert(std::is_same_v<carve::default_solver, carve::recurrent_solver>);
  std::cout << carve::forward(p).o.data.size() << " numbers\n";
  return 0;
#endif
}
