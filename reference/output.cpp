#include "output.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <string>
#include <system_error>

#include "carve/error.hpp"
#include "descriptor.hpp"
#include "safetensors.hpp"

namespace carve {

namespace {

namespace fs = std::filesystem;

std::string name_of(const fs::path& path) {
  return path == "-" ? "standard output"
                     : safetensors::printable(path.string());
}

[[noreturn]] void fail(const fs::path& path, int number) {
  throw error(name_of(path),
              ": cannot be written: ", std::generic_category().message(number));
}

void write_all(int fd, std::span<const std::byte> bytes, const fs::path& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      fail(path, errno);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

bool is_other_than_regular(const fs::path& path) {
  struct stat status = {};
  return ::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode);
}

}  // namespace

void check_output(const fs::path& path) {
  if (path == "-") return;
  struct stat status = {};
  if (::stat(path.c_str(), &status) == 0) {
    if (S_ISDIR(status.st_mode)) fail(path, EISDIR);
    if (::access(path.c_str(), W_OK) != 0) fail(path, errno);
    if (!S_ISREG(status.st_mode)) return;
  }
  // The temporary file comes to stand in the folder of a link's target.
  std::error_code code;
  const fs::path target = fs::weakly_canonical(path, code);
  const fs::path folder = (code ? fs::absolute(path) : target).parent_path();
  if (!fs::is_directory(folder, code))
    fail(path, code ? code.value() : ENOTDIR);
  if (::access(folder.c_str(), W_OK | X_OK) != 0) fail(path, errno);
}

void write_output(const fs::path& path,
                  const std::vector<std::span<const std::byte>>& parts) {
  if (path == "-" || is_other_than_regular(path)) {
    // O_NONBLOCK: a pipe that nobody reads is an error, not a wait.
    const descriptor fd(
        path == "-" ? ::dup(STDOUT_FILENO)
                    : ::open(path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
    if (fd.get() < 0) fail(path, errno);
    if (path != "-") ::fcntl(fd.get(), F_SETFL, 0);
    for (const auto& part : parts) write_all(fd.get(), part, path);
    return;
  }
  std::error_code code;
  fs::path target = path;
  if (fs::exists(path, code)) {
    target = fs::canonical(path, code);
    if (code) fail(path, code.value());
  }
  static std::atomic<unsigned> serial = 0;
  fs::path temporary = target;
  temporary += text(".tmp", ::getpid(), ".", serial++);
  descriptor fd(
      ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (fd.get() < 0) fail(path, errno);
  try {
    for (const auto& part : parts) write_all(fd.get(), part, path);
    if (::fsync(fd.get()) != 0 || fd.close() != 0) fail(path, errno);
    if (::rename(temporary.c_str(), target.c_str()) != 0) fail(path, errno);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

void write_output(const fs::path& path, std::string_view text) {
  write_output(path, {std::as_bytes(std::span(text))});
}

}  // namespace carve
