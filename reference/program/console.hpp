/// @file
/// How does text reach a terminal: how wide, how long, how far the work is, and
/// nothing in it that the terminal would obey?
#pragma once

#include <chrono>
#include <cstddef>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "carve/head.hpp"

namespace carve::program {

/// Columns of what stands behind the descriptor: its own number where it is a
/// terminal, else that of the variable COLUMNS, else 80; within 40 and 100.
std::size_t columns_of(int descriptor);

/// True where colour is welcome on standard output.
bool wants_colour();

/// `text` in lines of at most `width` columns, each after the first indented.
/// A line end within a paragraph is a blank; an empty line parts paragraphs,
/// and a line that begins with two blanks stays as it is.
std::string wrapped(std::string_view text, std::size_t width,
                    std::size_t indent = 0);

/// `left`, and from column `at` on `right`, wrapped; below it where `left` is
/// too long or the width too small.
std::string two_columns(std::string_view left, std::string_view right,
                        std::size_t at, std::size_t width);

/// A message as it may be shown: control bytes as `\\xNN`, and no more of it
/// than a screen holds (20 lines of 80), the rest counted.
std::string fit_for_terminal(std::string_view message);

/// One line on standard error, when that is a terminal and the work is long.
class progress_line {
 public:
  progress_line() = default;
  progress_line(const progress_line&) = delete;
  progress_line& operator=(const progress_line&) = delete;
  ~progress_line() { clear(); }

  /// Is there anybody to tell?
  bool wanted() const { return width_ != 0; }

  /// From now on the work takes so long; the line moves by itself.
  void expect(double seconds);

  /// @param[in] what  the work; without expect() a new one starts the clock of
  ///                  the estimate.
  void show(std::string_view what, index_t done, index_t total);
  void clear();

 private:
  using clock = std::chrono::steady_clock;
  void draw();

  const std::size_t width_ = terminal_width();
  std::mutex mutex_;
  const clock::time_point start_ = clock::now();
  clock::time_point phase_ = start_, shown_at_ = start_;
  std::string what_;
  index_t done_ = 0, total_ = 0;
  double expected_ = 0;  // seconds from phase_ on; 0: unknown
  bool shown_ = false;
  std::jthread ticker_;

  static std::size_t terminal_width();
};

/// "about 40 s left", "about 3 min left"; rounded so that it does not flicker.
std::string time_left(double seconds);

}  // namespace carve::program
