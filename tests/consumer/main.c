/* Does an installed libcarve serve a C program that knows nothing else? */
#include <carve/carve.h>
#include <stdio.h>

int main(void) {
  static float q[] = {1}, o[] = {1};
  static const int64_t shape[] = {1, 1, 1, 1};
  const carve_setting settings[] = {{"family", "linear"}};
  const char* const names[] = {"q", "k", "v"};
  carve_tensor in[4];
  carve_report* report;
  int passed, i;
  for (i = 0; i < 4; ++i) {
    in[i].name = i < 3 ? names[i] : "o", in[i].dtype = CARVE_F32;
    in[i].data = i < 3 ? q : o, in[i].rank = 4;
    in[i].shape = shape, in[i].strides = NULL;
  }
  if (carve_verify(in, 4, settings, 1, &report) != CARVE_OK) {
    fprintf(stderr, "%s\n", carve_last_error());
    return 2;
  }
  fputs(carve_report_table(report), stdout);
  passed = carve_report_verdict(report) == CARVE_PASS;
  carve_report_free(report);
  return passed ? 0 : 1;
}
