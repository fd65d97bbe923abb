// Does carve::cuda link?  A problem without inputs is refused, with or without
// a GPU.
#include <carve/cuda.hpp>
#include <iostream>

int main() {
  const carve::cuda::problem p;
  std::size_t bytes = 0;
  const carve::cuda::status s = carve::cuda::forward_workspace(p, &bytes);
  std::cout << s.text << '\n';
  return s ? 1 : 0;
}
