// Does a program outside this repository compile, link and run with carve?
#include <carve/version.hpp>
#include <iostream>

int main() {
  std::cout << "carve " << carve::version << '\n';
  return carve::version.empty() ? 1 : 0;
}
