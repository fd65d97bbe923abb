#include "program/console.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>

#include "carve/error.hpp"

namespace carve::program {

namespace {

/// Columns of a terminal; 0 where there is none.
std::size_t own_columns(int descriptor) {
  if (::isatty(descriptor) == 0) return 0;
  winsize size = {};
  if (::ioctl(descriptor, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) {
    return 80;
  }
  return size.ws_col;
}

/// Part of a control character of the upper half: C2 80 to C2 9F in UTF-8, or
/// its second byte alone.
bool is_c1(std::string_view text, std::size_t i) {
  const auto byte = [&](std::size_t at) {
    return at < text.size() ? static_cast<unsigned char>(text[at]) : 0u;
  };
  const auto upper = [](unsigned x) { return x >= 0x80 && x < 0xa0; };
  if (byte(i) == 0xc2) return upper(byte(i + 1));
  const unsigned before = i == 0 ? 0 : byte(i - 1);
  return upper(byte(i)) && (before < 0x80 || before == 0xc2);
}

}  // namespace

std::size_t columns_of(int descriptor) {
  std::size_t columns = own_columns(descriptor);
  if (columns == 0) {
    const char* const variable = std::getenv("COLUMNS");
    columns = variable ? std::strtoul(variable, nullptr, 10) : 0;
  }
  return std::clamp<std::size_t>(columns == 0 ? 80 : columns, 40, 100);
}

bool wants_colour() {
  const char* const refused = std::getenv("NO_COLOR");
  const char* const term = std::getenv("TERM");
  return ::isatty(STDOUT_FILENO) != 0 && (!refused || *refused == '\0') &&
         term && std::string_view(term) != "dumb";
}

std::string wrapped(std::string_view text, std::size_t width,
                    std::size_t indent) {
  const std::string margin(indent, ' ');
  std::string out, line;
  const auto end_line = [&] { out += line, line.clear(); };
  const auto new_line = [&] {
    end_line();
    out += '\n' + margin;
  };
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view source = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (source.empty() || source.starts_with("  ")) {
      if (!line.empty()) new_line();
      line = source;
      if (!text.empty()) new_line();
      continue;
    }
    while (!source.empty()) {
      const std::size_t length = std::min(source.find(' '), source.size());
      if (!line.empty() && indent + line.size() + 1 + length > width) {
        new_line();
      }
      if (!line.empty()) line += ' ';
      line += source.substr(0, length);
      source.remove_prefix(std::min(length + 1, source.size()));
    }
    if (text.starts_with('\n')) new_line();
  }
  end_line();
  return out;
}

std::string two_columns(std::string_view left, std::string_view right,
                        std::size_t at, std::size_t width) {
  std::string out = "  " + std::string(left);
  if (right.empty()) return out + '\n';
  // Narrower than that, the second column would be a column of words.
  const bool narrow = width < at + 36;
  if (narrow) at = 6;
  if (narrow || out.size() + 2 > at) out += '\n' + std::string(at, ' ');
  if (const auto last = out.rfind('\n'); last == out.npos) out.resize(at, ' ');
  return out + wrapped(right, width, at) + '\n';
}

std::string fit_for_terminal(std::string_view message) {
  constexpr std::size_t width = 80, lines = 20;
  static constexpr char digits[] = "0123456789abcdef";
  std::string out;
  std::size_t line = 0, column = 0;
  for (std::size_t i = 0; i < message.size(); ++i) {
    const auto byte = static_cast<unsigned char>(message[i]);
    if (message[i] == '\n' || column == width) ++line, column = 0;
    if (line == lines) {
      return out + carve::text("\n... and ", message.size() - i, " bytes more");
    }
    if (message[i] == '\n') {
      out += '\n';
    } else if (byte < 0x20 || byte == 0x7f || is_c1(message, i)) {
      out += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
      column += 4;
    } else {
      out += message[i];
      ++column;
    }
  }
  return out;
}

std::size_t progress_line::terminal_width() {
  return own_columns(STDERR_FILENO);
}

void progress_line::expect(double seconds) {
  if (!wanted()) return;
  const std::lock_guard lock(mutex_);
  expected_ = seconds, phase_ = clock::now();
  if (ticker_.joinable()) return;
  ticker_ = std::jthread([this](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      const std::lock_guard inner(mutex_);
      if (!stop.stop_requested() && !what_.empty()) draw();
    }
  });
}

void progress_line::show(std::string_view what, index_t done, index_t total) {
  if (!wanted()) return;
  const std::lock_guard lock(mutex_);
  if (what != what_ && expected_ == 0) phase_ = clock::now();
  what_ = what, done_ = done, total_ = total;
  draw();
}

void progress_line::draw() {
  const auto now = clock::now();
  // Ten times a second is as often as anybody reads.
  if (now - start_ < std::chrono::milliseconds(300) ||
      now - shown_at_ < std::chrono::milliseconds(90)) {
    return;
  }
  shown_at_ = now;
  std::string line = text(what_, ": ", done_, " of ", total_);
  const double spent = std::chrono::duration<double>(now - phase_).count();
  if (expected_ > 0) {
    line += ", " + time_left(expected_ - spent);
  } else if (done_ > 0 && spent > 1) {
    const auto part = static_cast<double>(done_) / static_cast<double>(total_);
    line += ", " + time_left(spent / part - spent);
  }
  std::cerr << "\r\033[K" << line.substr(0, width_ - 1) << std::flush;
  shown_ = true;
}

void progress_line::clear() {
  if (ticker_.joinable()) {
    ticker_.request_stop();
    ticker_.join();
  }
  if (shown_) std::cerr << "\r\033[K" << std::flush;
  shown_ = false;
}

std::string time_left(double seconds) {
  if (seconds < 10) return "a few seconds left";
  if (seconds < 90) {
    return text("about ", 5 * std::lround(seconds / 5), " s left");
  }
  if (seconds < 5400) {
    return text("about ", std::lround(seconds / 60), " min left");
  }
  return text("about ", std::lround(seconds / 3600), " h left");
}

}  // namespace carve::program
