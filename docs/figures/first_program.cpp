/// The program of the manual's first page; it fails when its comment is wrong.
// [program]
#include <carve/carve.hpp>
#include <iostream>
#include <vector>

int main() {
  carve::problem<double> p;
  p.family = carve::family::delta;
  p.scale = 1;
  p.in.q = p.in.k = {{1, 3, 1, 2}, {1, 0, 0, 1, 1, 0}};  // [B,T,H,K]
  p.in.v = {{1, 3, 1, 2}, {1, 2, 3, 4, 5, 6}};           // [B,T,HV,V]
  p.in.beta = {{1, 3, 1}, {1, 1, 0.5}};                  // [B,T,HV]
  const carve::outputs<double> out = carve::forward(p);
  for (const double o : out.o.data) std::cout << o << ' ';  // 1 2 3 4 3 4
  std::cout << '\n';
  return out.o.data == std::vector<double>{1, 2, 3, 4, 3, 4} ? 0 : 1;
}
// [program]
