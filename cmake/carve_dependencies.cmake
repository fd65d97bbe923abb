# Where does each dependency come from?  From the system when it is there;
# otherwise, for a build with a network, from the release named here.
include(FetchContent)

find_package(Eigen3 3.4 REQUIRED NO_MODULE)
find_package(Threads REQUIRED)
# Headers only; needed where one of its scalars is used, as in the library.
find_package(Boost 1.81 QUIET CONFIG GLOBAL)

# carve_need(<package>...) makes the targets of each package available.
function(carve_need)
  foreach(package IN LISTS ARGN)
    if(package STREQUAL "CLI11")
      set(from https://github.com/CLIUtils/CLI11.git v2.3.2)
    elseif(package STREQUAL "nlohmann_json")
      set(from https://github.com/nlohmann/json.git v3.11.2)
    elseif(package STREQUAL "Catch2")
      set(from https://github.com/catchorg/Catch2.git v2.13.10)
      set(CATCH_BUILD_STATIC_LIBRARY ON) # its main, compiled once
    elseif(package STREQUAL "rapidcheck")
      set(from https://github.com/emil-e/rapidcheck.git
               ff6af6fc683159deb51c543b065eba14dfcf329b)
    elseif(package STREQUAL "benchmark")
      set(from https://github.com/google/benchmark.git v1.8.3)
      set(BENCHMARK_ENABLE_TESTING OFF)
      set(BENCHMARK_ENABLE_INSTALL OFF)
    else()
      message(FATAL_ERROR "carve_need: no source known for ${package}")
    endif()
    list(GET from 0 repository)
    list(GET from 1 tag)
    FetchContent_Declare(
      ${package}
      GIT_REPOSITORY ${repository}
      GIT_TAG ${tag}
      SYSTEM FIND_PACKAGE_ARGS CONFIG)
    FetchContent_MakeAvailable(${package})
  endforeach()
endfunction()
